"""Kinds of task that are held in another way than most, or meet us while somebody else holds them (design, section 9)."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import abi
from active_restore.intercept.pins import Pins, directory
from tests.vm.inside.odd import exported
from tests.vm.inside.territory import Child, python, state_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.vm.inside.territory import Guarded

CONTENT = b"what the backup holds\n" * 1000


def test_run_by_gdb(paired: Guarded) -> None:
    """The guard holds it: gdb hung where a traced call was restarted."""
    path = paired.lay_now("debugged", CONTENT)
    said = Child("gdb", "-nx", "-batch", "-ex", "run", "--args", "wc", "-c", path).finish()
    assert re.search(rf"^{len(CONTENT)} ", said, re.MULTILINE), said
    assert "exited normally" in said
    assert paired.by_guard() == {True}


@pytest.mark.parametrize("tracer", [["strace", "-p"], ["gdb", "-nx", "-batch", "-p"]], ids=["strace", "gdb"])
def test_attaching_to_who_is_parked(paired: Guarded, tracer: list[str]) -> None:
    """It is refused, as for everybody who is traced already; the task does not notice."""
    row = paired.lay(f"attached by {tracer[0]}", CONTENT)
    child = Child("cat", paired.paths[row])
    paired.parked(child.pid)
    assert "Operation not permitted" in Child(*tracer, str(child.pid)).finish()
    paired.fill(row)
    assert child.finish() == CONTENT.decode()
    assert len(paired.of(row)) == 1


def test_strace_shows_one_open(paired: Guarded, tmp_path: Path) -> None:
    """Held in place: not even a restarted call is seen."""
    path, log = paired.lay_now("straced", CONTENT), tmp_path / "log"
    assert Child("strace", "-f", "-e", "openat", "-o", log, "cat", path).finish() == CONTENT.decode()
    opens = [line for line in log.read_text().splitlines() if str(path) in line]
    assert len(opens) == 1
    assert "= 3" in opens[0]


def test_loop_device(paired: Guarded, tmp_path: Path) -> None:
    """Its kernel thread reads what losetup has opened, and waited for, as a writer."""
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    path = paired.lay_now("image", image.read_bytes())
    where = tmp_path / "mounted"
    where.mkdir()
    assert Child("mount", "-o", "loop", path, where).finish() == ""
    assert (where / "lost+found").is_dir()
    subprocess.run(["umount", where], check=True)


def test_process_accounting(paired: Guarded) -> None:
    """The kernel itself opens the file, in the call of who asks for it."""
    path = paired.lay_now("account", bytes(64))
    code = "import ctypes, sys; libc = ctypes.CDLL(None); print(libc.acct(sys.argv[1].encode()), libc.acct(None))"
    assert python(code, path).finish() == "0 0\n"
    assert len(paired.faults) == 1


def test_job_control(paired: Guarded) -> None:
    """Ctrl-Z stops a task that waits; fg lets it wait on."""
    import pexpect

    row = paired.lay("job", b"the content\n")
    shell = pexpect.spawn(
        "bash", ["--norc", "-i"], encoding="utf-8", timeout=200, env={"PS1": "$ ", "PATH": os.environ["PATH"]}
    )
    shell.expect_exact("$ ")
    shell.sendline(f"cat {paired.paths[row]}")
    paired.faulted(row)
    paired.parked(paired.of(row)[0].task.tid)
    shell.sendcontrol("z")
    shell.expect_exact("Stopped")
    shell.sendline("fg")
    paired.faulted(row, 2)
    paired.fill(row)
    shell.expect_exact("the content")
    shell.sendline("exit")
    shell.expect(pexpect.EOF)


def test_stopped_by_its_user_before_it_is_parked(paired: Guarded) -> None:
    """A stop in the first millisecond is not swallowed by the SIGCONT of spinning."""
    for number in range(5):
        row = paired.lay(f"early{number}", CONTENT)
        child = Child("cat", paired.paths[row])
        paired.faulted(row)
        os.kill(child.pid, signal.SIGSTOP)
        until(lambda pid=child.pid: state_of(pid) == "T", "the user's stop")  # type: ignore[misc]
        paired.fill(row)
        os.kill(child.pid, signal.SIGCONT)
        assert child.finish() == CONTENT.decode()


def test_number_of_a_dead_thread(paired: Guarded, tmp_path: Path) -> None:
    """An entry that another thread with the same id has left: it is not taken for a wait of this one."""
    row = paired.lay("reused", CONTENT)
    pins = Pins(directory(paired.territory.restore_id))
    layout = abi.load().structs["wait"]
    gate, opened = tmp_path / "gate", "import sys; open(sys.argv[2]).read(); print(len(open(sys.argv[1]).read()))"
    os.mkfifo(gate)
    child = python(opened, paired.paths[row], gate)
    left = layout.pack(
        ino=paired.paths[row].stat().st_ino, since_ns=1, start_ns=1, length=(1 << 64) - 1, tid=child.pid, tgid=1, hook=1
    )
    pins.maps["waiters"].put(struct.pack("=I", child.pid), left)
    pins.close()
    gate.write_text("go")
    until(lambda: [fault for fault in paired.of(row) if fault.since_ns > 1], "its own wait")
    paired.fill(row)
    assert child.finish() == f"{len(CONTENT)}\n"


def test_nobody_sees_the_restart(paired: Guarded) -> None:
    """Errno 513 is the kernel's own: whatever interrupts a waiting call, no program gets it."""
    row = paired.lay("restarted", CONTENT)
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
    child = python(code, paired.paths[row])
    # Each alarm ends a wait, and its handler runs.
    paired.faulted(row, 5)
    paired.fill(row)
    assert child.finish() == f"[] {len(CONTENT)}\n"


@pytest.fixture(scope="module")
def seen(module_guard: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The guarded directory, by NFS."""
    with exported(module_guard.root, tmp_path_factory.mktemp("nfs")) as mounted:
        yield mounted


@pytest.mark.parametrize("slowly", [False, True], ids=["at once", "later"])
def test_nfs_server(paired: Guarded, seen: Path, slowly: bool) -> None:
    """Threads of the kernel: the guard holds them, and their clients wait."""
    row = paired.lay(f"served{slowly}", CONTENT)
    if not slowly:
        paired.at_once.add(row)
    child = Child("cat", seen / paired.paths[row].name)
    paired.faulted(row)
    if slowly:
        paired.fill(row)
    assert child.finish() == CONTENT.decode()
    assert paired.by_guard() == {True}
