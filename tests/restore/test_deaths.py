"""Agents, keepers and workers that are killed: tasks wait or get right bytes, never zeros; ``resume`` goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.kernel.rig import INTERCEPTORS, marked
from tests.kernel.tasks import Task, python, read
from tests.kernel.waiting import wait_until
from tests.restore.agents import OLD_NS, begun, kill, make

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.rig import Rig

MIB = 1 << 20
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_interrupted_waits_and_goes_on(held_rig: Rig, ext4_target: Path, number: signal.Signals) -> None:
    first, *_ = make(held_rig.tree)
    command = held_rig.hold(ext4_target)
    command.signal(number)
    assert command.end()[0] == 130
    with Task("cat", ext4_target / first) as task:
        task.held()
        again = held_rig.resume(ext4_target)
        assert task.output() == (held_rig.tree / first).read_bytes()
    held_rig.finish(again, ext4_target)
    held_rig.verify(ext4_target)


def test_killed_agent_holds_every_task(held_rig: Rig, target: Path) -> None:
    """Readers, writers and those who run a file wait for the next agent, and all get what they want."""
    names = make(held_rig.tree)
    shutil.copy("/bin/true", held_rig.tree / "true")
    (held_rig.tree / "true").chmod(0o755)
    command = held_rig.hold(target)
    assert read(target / names[0]) == (held_rig.tree / names[0]).read_bytes()
    kill(command)
    code = "fd = os.open(sys.argv[1], os.O_WRONLY)\nos.pwrite(fd, b'mine', 5)"
    with (
        Task("cat", target / names[1]) as reader,
        Task("cat", target / names[1]) as second,
        Task.python(code, target / names[2]) as writer,
        Task(sys.executable, "-S", "-E", "-c", f"import os; os.execv({str(target / 'true')!r}, ['true'])") as runner,
        Task("truncate", "-s", "100", target / names[3]) as truncater,
    ):
        for task in (reader, second, writer, runner, truncater):
            task.held()
        again = held_rig.resume(target)
        content = (held_rig.tree / names[1]).read_bytes()
        assert (reader.output(), second.output()) == (content, content)
        for task in (writer, runner, truncater):
            task.output()
    expected = bytearray((held_rig.tree / names[2]).read_bytes())
    expected[5:9] = b"mine"
    assert read(target / names[2]) == bytes(expected)
    assert read(target / names[3]) == (held_rig.tree / names[3]).read_bytes()[:100]
    held_rig.finish(again, target)
    held_rig.assert_clean(target)
    for name in names[4:]:
        assert read(target / name) == (held_rig.tree / name).read_bytes()


def test_killed_again_and_again(held_rig: Rig, ext4_target: Path) -> None:
    """Thousands of reads by several processes while the agent is killed in the middle: right bytes or waiting, never zeros."""
    names = make(held_rig.tree, 3000, 5_000)
    sums = held_rig.place / "sums"
    sums.write_bytes(subprocess.run(["md5sum", *names], cwd=held_rig.tree, capture_output=True, check=True).stdout)
    command = held_rig.hold(ext4_target)
    code = (
        "import hashlib, random\n"
        "want = [line.split() for line in open(sys.argv[1])]\n"
        "random.Random(sys.argv[2]).shuffle(want)\n"
        "os.chdir(sys.argv[3])\n"
        "bad = [n for d, n in want if hashlib.md5(open(n, 'rb').read()).hexdigest() != d]\n"
        "print(len(want), len(bad))"
    )
    readers = [Task.python(code, sums, str(number), ext4_target) for number in range(4)]
    for _ in range(4):
        before = faults(held_rig, ext4_target)
        wait_until(partial(served, held_rig, ext4_target, before + 100), "faults are served")
        kill(command)
        command = held_rig.resume(ext4_target)
        with held_rig.control(ext4_target) as client:
            client.limit(1)
    for reader in readers:
        with reader:
            assert reader.output() == b"3000 0\n"
    held_rig.finish(command, ext4_target)
    held_rig.assert_clean(ext4_target)
    # Not by verify: a filler that is killed when write(2) has set the time and copied nothing leaves that time.
    subprocess.run(["md5sum", "--quiet", "-c", sums], cwd=ext4_target, check=True, timeout=60)


def _either(enough: Callable[[], bool], readers: list[Task]) -> bool:
    return enough() or all(reader.ended() for reader in readers)


def served(rig: Rig, target: Path, count: int) -> bool:
    return faults(rig, target) > count


def faults(rig: Rig, target: Path) -> int:
    with rig.control(target) as client:
        return client.status().faults


@pytest.mark.parametrize("victims", [["ar-keeper"], ["ar-standby"], ["ar-standby", "ar-keeper"]], ids="-".join)
def test_killed_keepers_are_replaced(held_rig: Rig, ext4_target: Path, victims: list[str]) -> None:
    names = make(held_rig.tree)
    command = held_rig.hold(ext4_target)
    for round_, name in enumerate(names[:4]):
        wait_until(held_rig.is_guarded, "keeper and standby are there")
        for victim in victims:
            held_rig.kill(victim)
        assert read(ext4_target / name) == (held_rig.tree / name).read_bytes(), round_
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_killed_keepers_let_nobody_through(held_rig: Rig, ext4_target: Path) -> None:
    """Readers race with the death of keepers: whom a keeper was just looking at gets EIO (before 6.13, where the machines of
    BPF are, EPERM), nobody gets zeros.
    """
    refusals = "(errno.EIO, errno.EPERM)" if INTERCEPTORS[0] == "bpf" else "(errno.EIO,)"
    names = make(held_rig.tree, 1500, 5_000)
    command = held_rig.hold(ext4_target)
    code = (
        "import errno\n"
        "def content(path):\n"
        "    while True:\n"
        "        try:\n"
        "            return open(path, 'rb').read()\n"
        "        except OSError as error:\n"
        f"            if error.errno not in {refusals}:\n"
        "                raise\n"
        "for name in sys.stdin.read().split():\n"
        "    data = content(os.path.join(sys.argv[1], name))\n"
        "    assert data == open(os.path.join(sys.argv[2], name), 'rb').read(), (name, data and len(data), (data or b'')[:9])\n"
        "print('right')"
    )
    readers = [Task.python(code, ext4_target, held_rig.tree) for _ in range(3)]
    for number, reader in enumerate(readers):
        reader.say("\n".join(names[number::3]).encode())
        reader.close_input()
    for _ in range(4):
        before = faults(held_rig, ext4_target)
        enough = partial(served, held_rig, ext4_target, before + 30)
        wait_until(partial(_either, enough, readers), "faults are served")
        held_rig.kill("ar-keeper")
        wait_until(held_rig.is_guarded, "keepers are there again")
    for reader in readers:
        with reader:
            assert reader.output() == b"right\n"
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_killed_agent_and_keeper(held_rig: Rig, ext4_target: Path) -> None:
    """The standby holds what the dead keeper held for the dead agent."""
    names = make(held_rig.tree)
    command = held_rig.hold(ext4_target)
    kill(command)
    tasks = [Task("cat", ext4_target / name) for name in names]
    for task in tasks:
        task.held()
    # The keeper takes events in order: when it lets this one go on it has looked at all of them.
    python("open(sys.argv[1], 'w').close()", ext4_target / "plain")
    held_rig.kill("ar-keeper")
    late = Task("cat", ext4_target / names[0])
    late.held()
    again = held_rig.resume(ext4_target)
    for name, task in zip([*names, names[0]], [*tasks, late], strict=True):
        with task:
            assert task.output() == (held_rig.tree / name).read_bytes()
    held_rig.finish(again, ext4_target)
    held_rig.assert_clean(ext4_target)


def test_killed_workers_are_replaced(held_rig: Rig, ext4_target: Path) -> None:
    """In the middle of a large file, too: times and capabilities are as they were."""
    names = make(held_rig.tree, 4, 12 * MIB)
    for name in names:
        os.setxattr(held_rig.tree / name, "security.capability", CAPABILITY)
        os.utime(held_rig.tree / name, ns=(OLD_NS, OLD_NS))
    command = held_rig.hold(ext4_target)
    with held_rig.control(ext4_target) as client:
        client.limit(4 * MIB)
        client.promote([b"f0000", b"f0001"])
    for _ in range(2):
        wait_until(lambda: begun(ext4_target) and held_rig.processes("restore.worker"), "a file is half filled")
        held_rig.kill("restore.worker")
        command.until("notice")
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_killed_worker_whose_file_is_deleted(held_rig: Rig, ext4_target: Path) -> None:
    """Filled, but not durable when its worker dies, and its user has deleted it: the restore comes to its end all the same."""
    names = make(held_rig.tree, 12)
    command = held_rig.hold(ext4_target)
    with held_rig.control(ext4_target) as client:
        client.limit(4 * MIB)
        client.promote([name.encode() for name in names])
    wait_until(lambda: (ext4_target / names[-1]).stat().st_blocks, "the files are filled")
    for pid in held_rig.processes("restore.worker"):
        os.kill(pid, signal.SIGSTOP)
    left = [name for name in names if marked(ext4_target / name)]
    assert left, "they were durable before the worker could be stopped: this test needs a faster stop"
    for name in left:
        (ext4_target / name).unlink()
    held_rig.kill("restore.worker")
    held_rig.finish(command, ext4_target)
    held_rig.assert_clean(ext4_target)


def test_killed_in_the_middle_of_a_file(held_rig: Rig, target: Path) -> None:
    """What the dead agent's worker wrote does not pass for a user's time, nor does the lost capability for a user's wish."""
    names = make(held_rig.tree, 2, 12 * MIB)
    for name in names:
        os.setxattr(held_rig.tree / name, "security.capability", CAPABILITY)
        os.utime(held_rig.tree / name, ns=(OLD_NS, OLD_NS))
    command = held_rig.hold(target)
    with held_rig.control(target) as client:
        client.limit(4 * MIB)
        client.promote([b"f0000", b"f0001"])
    wait_until(lambda: begun(target), "a file is half filled")
    kill(command)
    held_rig.finish(held_rig.resume(target), target)
    held_rig.verify(target)


def test_filled_file_is_not_emptied_again(held_rig: Rig, target: Path) -> None:
    """A task has mapped a file when the agent dies before the file is settled; the next agent is interrupted while it
    restores the file again: the mapping never shows zeros.
    """
    (held_rig.tree / "big").write_bytes(os.urandom(12 * MIB))
    command = held_rig.hold(target)
    code = (
        "import mmap, hashlib\n"
        "m = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)\n"
        "print(hashlib.md5(m).hexdigest(), flush=True)\n"
        "sys.stdin.readline()\n"
        "print(hashlib.md5(m).hexdigest(), flush=True)"
    )
    os.kill(command.pid, 0)
    with Task.python(code, target / "big") as task:
        before = task.line()
        kill(command)
        if not marked(target / "big"):
            pytest.fail("it was settled before the agent could be killed: this test needs a faster kill")
        again = held_rig.start("resume", target)
        again.until("ready")
        with held_rig.control(target) as client:
            client.limit(1)
            client.promote([b"big"])
        again.signal(signal.SIGINT)
        assert again.end()[0] == 130
        task.say(b"\n")
        assert task.line() == before
    held_rig.finish(held_rig.resume(target), target)
    held_rig.verify(target)


def test_running_program_is_restored_again(held_rig: Rig, ext4_target: Path) -> None:
    """A program was started from a file that was not settled when the agent died: the next one cannot write to it."""
    shutil.copy("/bin/cat", held_rig.tree / "cat")
    (held_rig.tree / "cat").chmod(0o755)
    command = held_rig.hold(ext4_target)
    with Task(ext4_target / "cat") as task:
        task.say(b"runs\n")
        assert task.line() == b"runs\n"
        kill(command)
        again = held_rig.resume(ext4_target)
        held_rig.finish(again, ext4_target)
    held_rig.verify(ext4_target)


def test_writer_goes_on_only_when_the_marker_is_gone(held_rig: Rig, target: Path) -> None:
    """Else the next agent would write the backup over what the user has written and synced."""
    names = make(held_rig.tree, 3)
    command = held_rig.hold(target)
    code = (
        "for name in sys.argv[1:]:\n"
        "    fd = os.open(name, os.O_RDWR)\n"
        "    assert not os.listxattr(name)\n"
        "    os.pwrite(fd, b'mine', 0)\n"
        "    os.fsync(fd)"
    )
    python(code, *(target / name for name in names))
    kill(command)
    held_rig.finish(held_rig.resume(target), target)
    for name in names:
        assert read(target / name) == b"mine" + (held_rig.tree / name).read_bytes()[4:]


def test_writer_right_behind_a_reader(held_rig: Rig, target: Path) -> None:
    """A reader needs complete content, a writer durable content: a file filled for the one is not settled for the other."""
    names = make(held_rig.tree)
    command = held_rig.hold(target)
    code = (
        "for path in sys.argv[1:]:\n"
        "    open(path, 'rb').read()\n"
        "    fd = os.open(path, os.O_RDWR)\n"
        "    print('trusted.active_restore' in os.listxattr(fd))\n"
        "    os.close(fd)"
    )
    assert python(code, *(target / name for name in names)).split() == [b"False"] * len(names)
    held_rig.finish(command, target)
    held_rig.verify(target)


def test_writer_meets_a_worker_in_the_middle(held_rig: Rig, target: Path) -> None:
    """A user writes to the end of a file that a worker is just filling: the worker does not come by later."""
    (held_rig.tree / "f0").write_bytes(os.urandom(12 * MIB))
    command = held_rig.hold(target)
    with held_rig.control(target) as client:
        client.limit(4 * MIB)
        client.promote([b"f0"])
    wait_until(lambda: begun(target), "a worker is in the middle of it")
    python("fd = os.open(sys.argv[1], os.O_RDWR)\nos.pwrite(fd, b'mine', (12 << 20) - 4)", target / "f0")
    held_rig.finish(command, target)
    assert read(target / "f0") == (held_rig.tree / "f0").read_bytes()[:-4] + b"mine"
    held_rig.assert_clean(target)


def test_killed_task_is_forgotten(held_rig: Rig, ext4_target: Path) -> None:
    first, second, *_ = make(held_rig.tree)
    command = held_rig.hold(ext4_target)
    kill(command)
    victim, other = Task("cat", ext4_target / first), Task("cat", ext4_target / second)
    victim.held()
    other.held()
    with victim:
        victim.kill()
    again = held_rig.resume(ext4_target)
    with other:
        assert other.output() == (held_rig.tree / second).read_bytes()
    assert read(ext4_target / first) == (held_rig.tree / first).read_bytes()
    held_rig.finish(again, ext4_target)
    held_rig.verify(ext4_target)


@pytest.mark.parametrize("deed", ["unlink", "rename over"])
def test_waits_for_a_file_that_is_deleted_meanwhile(held_rig: Rig, target: Path, deed: str) -> None:
    """The open(2) under way is for the old inode and gets its content, whatever its name leads to now.

    BPF lets it begin anew: it is for what the name leads to when the task goes on.
    """
    first, *_ = make(held_rig.tree)
    command = held_rig.hold(target)
    kill(command)
    with Task("cat", target / first) as task:
        task.held()
        if deed == "unlink":
            (target / first).unlink()
        else:
            (target / "new").write_bytes(b"new")
            (target / "new").rename(target / first)
        again = held_rig.resume(target)
        if INTERCEPTORS[0] == "bpf":
            assert task.finish()[:2] == ((1, b"") if deed == "unlink" else (0, b"new"))
        else:
            assert task.output() == (held_rig.tree / first).read_bytes()
    held_rig.finish(again, target)
    held_rig.assert_clean(target)
    assert (target / first).exists() == (deed != "unlink")
