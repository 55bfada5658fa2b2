"""Kinds of task that are held in another way than most, or meet us while somebody else holds them (design, section 9)."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import abi
from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor
from active_restore.intercept.bpf_lsm import FIRST_TICKET
from active_restore.intercept.pins import Pins, directory
from tests.vm.inside.territory import Child, Guarded, python, state_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = b"what the backup holds\n" * 1000


@pytest.fixture(scope="module")
def module_guard(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """BPF and its guard, for all tests of this module."""
    with Guarded(disk / "kinds", tmp_path_factory.mktemp("run"), GuardedBpfInterceptor(required=True)) as guarded:
        yield guarded


@pytest.fixture
def guarded(module_guard: Guarded) -> Iterator[Guarded]:
    """BPF and its guard, with nobody waiting before and after."""
    yield module_guard
    module_guard.settle()


def _by_guard(guarded: Guarded) -> set[bool]:
    return {fault.ticket < FIRST_TICKET for fault in guarded.faults}


def test_run_by_gdb(guarded: Guarded) -> None:
    """The guard holds it: gdb hung where a traced call was restarted."""
    path = guarded.lay_now("debugged", CONTENT)
    said = Child("gdb", "-nx", "-batch", "-ex", "run", "--args", "wc", "-c", path).finish()
    assert re.search(rf"^{len(CONTENT)} ", said, re.MULTILINE), said
    assert "exited normally" in said
    assert _by_guard(guarded) == {True}


@pytest.mark.parametrize("tracer", [["strace", "-p"], ["gdb", "-nx", "-batch", "-p"]], ids=["strace", "gdb"])
def test_attaching_to_who_is_parked(guarded: Guarded, tracer: list[str]) -> None:
    """It is refused, as for everybody who is traced already; the task does not notice."""
    row = guarded.lay(f"attached by {tracer[0]}", CONTENT)
    child = Child("cat", guarded.paths[row])
    guarded.parked(child.pid)
    assert "Operation not permitted" in Child(*tracer, str(child.pid)).finish()
    guarded.fill(row)
    assert child.finish() == CONTENT.decode()
    assert len(guarded.of(row)) == 1


def test_strace_shows_one_open(guarded: Guarded, tmp_path: Path) -> None:
    """Held in place: not even a restarted call is seen."""
    path, log = guarded.lay_now("straced", CONTENT), tmp_path / "log"
    assert Child("strace", "-f", "-e", "openat", "-o", log, "cat", path).finish() == CONTENT.decode()
    opens = [line for line in log.read_text().splitlines() if str(path) in line]
    assert len(opens) == 1
    assert "= 3" in opens[0]


def test_loop_device(guarded: Guarded, tmp_path: Path) -> None:
    """Its kernel thread reads what losetup has opened, and waited for, as a writer."""
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    path = guarded.lay_now("image", image.read_bytes())
    where = tmp_path / "mounted"
    where.mkdir()
    assert Child("mount", "-o", "loop", path, where).finish() == ""
    assert (where / "lost+found").is_dir()
    subprocess.run(["umount", where], check=True)


def test_process_accounting(guarded: Guarded) -> None:
    """The kernel itself opens the file, in the call of who asks for it."""
    path = guarded.lay_now("account", bytes(64))
    code = "import ctypes, sys; libc = ctypes.CDLL(None); print(libc.acct(sys.argv[1].encode()), libc.acct(None))"
    assert python(code, path).finish() == "0 0\n"
    assert len(guarded.faults) == 1


def test_job_control(guarded: Guarded) -> None:
    """Ctrl-Z stops a task that waits; fg lets it wait on."""
    import pexpect

    row = guarded.lay("job", b"the content\n")
    shell = pexpect.spawn(
        "bash", ["--norc", "-i"], encoding="utf-8", timeout=200, env={"PS1": "$ ", "PATH": os.environ["PATH"]}
    )
    shell.expect_exact("$ ")
    shell.sendline(f"cat {guarded.paths[row]}")
    guarded.faulted(row)
    guarded.parked(guarded.of(row)[0].task.tid)
    shell.sendcontrol("z")
    shell.expect_exact("Stopped")
    shell.sendline("fg")
    guarded.faulted(row, 2)
    guarded.fill(row)
    shell.expect_exact("the content")
    shell.sendline("exit")
    shell.expect(pexpect.EOF)


def test_stopped_by_its_user_before_it_is_parked(guarded: Guarded) -> None:
    """A stop in the first millisecond is not swallowed by the SIGCONT of spinning."""
    for number in range(5):
        row = guarded.lay(f"early{number}", CONTENT)
        child = Child("cat", guarded.paths[row])
        guarded.faulted(row)
        os.kill(child.pid, signal.SIGSTOP)
        until(lambda pid=child.pid: state_of(pid) == "T", "the user's stop")  # type: ignore[misc]
        guarded.fill(row)
        os.kill(child.pid, signal.SIGCONT)
        assert child.finish() == CONTENT.decode()


def test_number_of_a_dead_thread(guarded: Guarded, tmp_path: Path) -> None:
    """An entry that another thread with the same id has left: it is not taken for a wait of this one."""
    row = guarded.lay("reused", CONTENT)
    pins = Pins(directory(guarded.territory.restore_id))
    layout = abi.load().structs["wait"]
    gate, opened = tmp_path / "gate", "import sys; open(sys.argv[2]).read(); print(len(open(sys.argv[1]).read()))"
    os.mkfifo(gate)
    child = python(opened, guarded.paths[row], gate)
    left = layout.pack(
        ino=guarded.paths[row].stat().st_ino, since_ns=1, start_ns=1, length=(1 << 64) - 1, tid=child.pid, tgid=1, hook=1
    )
    pins.maps["waiters"].put(struct.pack("=I", child.pid), left)
    pins.close()
    gate.write_text("go")
    until(lambda: [fault for fault in guarded.of(row) if fault.since_ns > 1], "its own wait")
    guarded.fill(row)
    assert child.finish() == f"{len(CONTENT)}\n"


def test_nobody_sees_the_restart(guarded: Guarded) -> None:
    """Errno 513 is the kernel's own: whatever interrupts a waiting call, no program gets it."""
    row = guarded.lay("restarted", CONTENT)
    code = """
        import ctypes, os, signal, sys
        libc = ctypes.CDLL(None, use_errno=True)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        errors = set()
        while (fd := libc.open(sys.argv[1].encode(), os.O_RDONLY)) < 0:
            errors.add(ctypes.get_errno())
        signal.setitimer(signal.ITIMER_REAL, 0, 0)
        print(sorted(errors), len(os.read(fd, 1 << 20)))
    """
    child = python(code, guarded.paths[row])
    # Each alarm ends a wait, and its handler runs.
    guarded.faulted(row, 5)
    guarded.fill(row)
    assert child.finish() == f"[] {len(CONTENT)}\n"


def _tell(cache: str, line: str) -> None:
    """What the kernel asks mountd for: a line for one of the caches of its NFS server (net/sunrpc/cache.c)."""
    Path(f"/proc/net/rpc/{cache}/channel").write_text(f"{line}\n")


@pytest.fixture(scope="module")
def exported(module_guard: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The guarded directory by NFS from this very machine, without the programs of an NFS server."""
    seen, server = tmp_path_factory.mktemp("nfs"), Path("/proc/fs/nfsd")
    modules = "/run/modules" if os.path.isdir("/run/modules") else "/"
    subprocess.run(["modprobe", "-d", modules, "-a", "nfsd", "nfsv4"], check=True)
    if not os.path.ismount(server):
        subprocess.run(["mount", "-t", "nfsd", "nfsd", server], check=True)
    for name, text in {"nfsv4gracetime": "10", "versions": "-3 +4", "portlist": "tcp 2049"}.items():
        (server / name).write_text(f"{text}\n")
    never = (1 << 31) - 1
    _tell("auth.unix.ip", f"nfsd 127.0.0.1 {never} *")
    # Not secure, no squashing, known by the number 0, no check of subtrees.
    _tell("nfsd.export", f"* {module_guard.root} {never} {0x2402} 65534 65534 0")
    _tell("nfsd.fh", f"* 1 \\x00000000 {never} {module_guard.root}")
    (server / "threads").write_text("2\n")
    try:
        options = "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,sec=sys,soft,timeo=600"
        subprocess.run(["mount", "-i", "-t", "nfs4", "-o", options, "127.0.0.1:/", seen], check=True)
        yield seen
        subprocess.run(["umount", "-l", seen], check=True)
    finally:
        (server / "threads").write_text("0\n")


@pytest.mark.parametrize("slowly", [False, True], ids=["at once", "later"])
def test_nfs_server(guarded: Guarded, exported: Path, slowly: bool) -> None:
    """Threads of the kernel: the guard holds them, and their clients wait."""
    row = guarded.lay(f"served{slowly}", CONTENT)
    if not slowly:
        guarded.at_once.add(row)
    child = Child("cat", exported / guarded.paths[row].name)
    guarded.faulted(row)
    if slowly:
        guarded.fill(row)
    assert child.finish() == CONTENT.decode()
    assert _by_guard(guarded) == {True}
