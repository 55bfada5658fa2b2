"""A disk that takes no more writes: nothing counts as restored that did not reach it, and when it is well again, all is.

The kernel tells of a write that failed once to each open file, and forgets the page that it could not write: who asks a second
time, or by another descriptor, hears that all is well.
"""

from __future__ import annotations

import contextlib
import errno
import subprocess
from typing import TYPE_CHECKING

import pytest

from active_restore.errors import ActiveRestoreError
from tests.kernel.disks import KINDS, unmount_for_good
from tests.kernel.rig import marked
from tests.kernel.tasks import Task, python, read
from tests.kernel.waiting import wait_until
from tests.restore.agents import kill, make
from tests.torture.power.lane import MKFS, SIZES
from tests.torture.power.recorder import Recorder
from tests.torture.power.server import BAD, FAIL_BAD, FAIL_FLUSHES, FAIL_FULL, FAIL_WRITES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.machine import Command
    from tests.kernel.rig import Rig

_SIZE = 60_000
_READS_THEN_WRITES = """
fd = os.open(sys.argv[1], os.O_RDONLY)
if int(sys.argv[2]):
    try:
        os.fsync(fd)
    except OSError:
        pass
try:
    os.open(sys.argv[1], os.O_WRONLY)
    print(0)
except OSError as error:
    print(error.errno)
"""


# sync_file_range(2), which tells of a failure, and leaves it to be told to whoever syncs the file system.
_WRITES_BACK = """
import ctypes
fd = os.open(sys.argv[1], os.O_RDWR)
print(ctypes.CDLL(None).sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), 7))
"""


class Ailing:
    """A mounted disk whose requests can fail."""

    def __init__(self, kind: str, recorder: Recorder, mount: Path) -> None:
        self.kind = kind
        self.recorder = recorder
        self.mount = mount
        self.target = mount / "t"

    def attach(self) -> None:
        """Mount it."""
        subprocess.run(["mount", "-o", "loop", self.recorder.disk(0), self.mount], check=True)

    def detach(self) -> None:
        """Unmount it: what is only in memory is gone, as far as it cannot be written."""
        unmount_for_good(self.mount)


@contextlib.contextmanager
def ailing(kind: str, place: Path) -> Iterator[Ailing]:
    """A disk in ``place``."""
    place.mkdir()
    image, mount = place / "image", place / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZES[kind])
    subprocess.run([*MKFS[kind], image], check=True, capture_output=True)
    with Recorder(place, [image]) as recorder:
        disk = Ailing(kind, recorder, mount)
        disk.attach()
        try:
            yield disk
        finally:
            recorder.fail(0)
            disk.detach()


def make_bad(tree: Path, files: int = 12) -> list[str]:
    """Files of which every third cannot be written; the names of those."""
    bad = make(tree, files, _SIZE)[::3]
    for name in bad:
        (tree / name).write_bytes(BAD * (_SIZE // len(BAD)))
    return bad


def assert_nothing_is_lost(rig: Rig, target: Path) -> None:
    """What has no marker has its content, on the disk."""
    for path in rig.tree.iterdir():
        copy = target / path.name
        if copy.exists() and not marked(copy):
            assert copy.read_bytes() == path.read_bytes(), path.name


def expect_one_line(command_errors: str) -> None:
    """One line, no traceback."""
    assert "Traceback" not in command_errors, command_errors
    assert "active-restore: error: " in command_errors, command_errors


def go_on(rig: Rig, disk: Ailing, *, mounted: bool) -> None:
    """After the failure: no marker was lost with the content; the disk is well again, and all ends well.

    ``mounted``: it stays so, and with it what the file system believes of the pages that it could not write.
    """
    with contextlib.suppress(AssertionError):
        rig.kill("ar-")
    if mounted:
        disk.recorder.fail(0)
    else:
        disk.detach()
        disk.recorder.fail(0)
        disk.attach()
    assert_nothing_is_lost(rig, disk.target)
    done = rig.run("resume", disk.target)
    assert done.returncode == 0, done.stderr
    disk.detach()
    disk.attach()
    rig.verify(disk.target)


def finish_in_two(rig: Rig, command: Command, target: Path) -> None:
    """To the good end, also where it hears of an old error meanwhile and begins once more, with the limit that it was given."""

    def over() -> bool:
        with contextlib.suppress(ActiveRestoreError, OSError):
            rig.hurry(target)
        return command.ended()

    wait_until(over, "it ends")
    code, said = command.end()
    assert code == 0, said


@pytest.mark.parametrize(("fault", "mounted"), [(FAIL_BAD, False), (FAIL_FULL, True)], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_the_background_cannot_write(rig: Rig, kind: str, fault: int, *, mounted: bool) -> None:
    """ENOSPC is of a disk that promised more than it has, after the file system had taken the data."""
    # Few are synced one by one, and where that meets a full disk it is asked for again.
    make_bad(rig.tree, 3 if fault == FAIL_FULL else 12)
    with ailing(kind, rig.place / "disk") as disk:
        disk.recorder.fail(fault)
        code, errors = rig.start("restore", rig.source, disk.target).end()
        assert code not in (0, 3, 130), errors
        expect_one_line(errors)
        go_on(rig, disk, mounted=mounted)


@pytest.mark.parametrize("told", [False, True], ids=["", "after fsync"])
def test_blocks_that_cannot_be_written_for_a_writer(held_rig: Rig, *, told: bool) -> None:
    """Who opens such a file for writing gets EIO, or waits for the next agent; so it is, too, where a reader was told first."""
    bad = make_bad(held_rig.tree)[0]
    with ailing("ext4", held_rig.place / "disk") as disk:
        command = held_rig.hold(disk.target)
        disk.recorder.fail(FAIL_BAD)
        with Task.python(_READS_THEN_WRITES, disk.target / bad, str(int(told))) as task:
            # Where the settler was first, the agent ends, and the writer waits for the next one.
            code, said = command.end()
            if task.ended():
                assert task.output() == b"5\n"
        assert code not in (0, 3, 130), said
        expect_one_line(said)
        assert marked(disk.target / bad)
        # Its pages are not on the disk and may be dropped at any time.
        python("open('/proc/sys/vm/drop_caches', 'w').write('1')")
        with Task("cat", disk.target / bad) as task:
            task.held()
            disk.recorder.fail(0)
            again = held_rig.resume(disk.target)
            assert task.output() == (held_rig.tree / bad).read_bytes()
        held_rig.finish(again, disk.target)
        disk.detach()
        disk.attach()
        held_rig.verify(disk.target)


@pytest.mark.parametrize("dropped", [True, False], ids=["dropped", "kept"])
def test_blocks_of_a_file_by_range(held_rig: Rig, *, dropped: bool) -> None:
    """What was read of it may be lost: the next agent looks at what the disk has, whether or not memory has it still."""
    size = 4 << 20
    (held_rig.tree / "ranged").write_bytes(BAD * (size // len(BAD)))
    with ailing("ext4", held_rig.place / "disk") as disk:
        command = held_rig.hold(disk.target, "--ranges", "ranged", "--range-threshold", "1MiB")
        disk.recorder.fail(FAIL_BAD)
        part = "fd = os.open(sys.argv[1], os.O_RDONLY); os.write(1, os.pread(fd, 5000, 1 << 20))"
        expected = (held_rig.tree / "ranged").read_bytes()[1 << 20 :][:5000]
        assert python(part, disk.target / "ranged") == expected
        held_rig.hurry(disk.target)
        code, said = command.end()
        assert code not in (0, 3, 130), said
        expect_one_line(said)
        if dropped:
            # Else the kernel does that in its own time.
            subprocess.run(["sync", "-f", disk.target], check=False)
            python("open('/proc/sys/vm/drop_caches', 'w').write('1')")
        with Task.python(part, disk.target / "ranged") as task:
            task.held()
            disk.recorder.fail(0)
            again = held_rig.resume(disk.target)
            assert task.output() == expected
        finish_in_two(held_rig, again, disk.target)
        disk.detach()
        disk.attach()
        held_rig.verify(disk.target)


def test_an_error_that_nobody_was_told_of(held_rig: Rig) -> None:
    """The kernel tells it to the next agent, though the disk is well: ``resume`` goes on by itself."""
    make_bad(held_rig.tree)
    with ailing("ext4", held_rig.place / "disk") as disk:
        kill(held_rig.hold(disk.target))
        held_rig.kill("ar-")
        disk.recorder.fail(FAIL_BAD)
        (disk.mount / "mine").write_bytes(BAD * (_SIZE // len(BAD)))
        python(_WRITES_BACK, disk.mount / "mine")
        disk.recorder.fail(0)
        again = held_rig.resume(disk.target)
        assert "restored once more" in again.until("notice")["text"]
        finish_in_two(held_rig, again, disk.target)
        disk.detach()
        disk.attach()
        held_rig.verify(disk.target)


@pytest.mark.parametrize("kind", KINDS)
def test_disk_that_dies(held_rig: Rig, kind: str) -> None:
    """Nothing can be written or flushed any more: EIO to tasks, an end in one line, and nothing lost that a user had synced."""
    first, second, *_ = make(held_rig.tree, 40, _SIZE)
    with ailing(kind, held_rig.place / "disk") as disk:
        command = held_rig.hold(disk.target)
        mine = "fd = os.open(sys.argv[1], os.O_WRONLY); os.pwrite(fd, b'mine', 100); os.fsync(fd)"
        python(mine, disk.target / first)
        disk.recorder.fail(FAIL_WRITES | FAIL_FLUSHES)
        with Task.python(mine, disk.target / second) as task:
            # Where the agent is the first to know, it ends, and tasks wait for the next one.
            wait_until(lambda: task.ended() or command.ended(), "an errno, or an end")
            with contextlib.suppress(Exception):
                held_rig.hurry(disk.target)
            code, said = command.end()
            assert code not in (0, 3, 130), said
            expect_one_line(said)
            assert not task.ended() or task.finish()[0]
        held_rig.kill("ar-")
        disk.detach()
        disk.recorder.fail(0)
        disk.attach()
        copy = bytearray((held_rig.tree / first).read_bytes())
        copy[100:104] = b"mine"
        assert (disk.target / first).read_bytes() == copy
        held_rig.finish(held_rig.resume(disk.target), disk.target)
        for path in held_rig.tree.iterdir():
            if path.name != first:
                assert (disk.target / path.name).read_bytes() == path.read_bytes(), path.name
        held_rig.assert_clean(disk.target)


def test_disk_of_the_state_dies(held_rig: Rig, ext4_target: Path) -> None:
    """The target's disk is well: tasks are served as long as may be, then wait for the next agent; nothing is lost."""
    make(held_rig.tree, 40, _SIZE)
    with ailing("ext4", held_rig.place / "disk") as disk:
        held_rig.env["ACTIVE_RESTORE_STATE"] = str(disk.mount / "state")
        command = held_rig.hold(ext4_target)
        disk.recorder.fail(FAIL_WRITES | FAIL_FLUSHES)
        with contextlib.suppress(Exception):
            held_rig.hurry(ext4_target)
        code, said = command.end()
        assert code not in (0, 3, 130), said
        expect_one_line(said)
        with Task("cat", ext4_target / "f0030") as task:
            disk.detach()
            disk.recorder.fail(0)
            disk.attach()
            again = held_rig.resume(ext4_target)
            assert task.output() == (held_rig.tree / "f0030").read_bytes()
        held_rig.finish(again, ext4_target)
        held_rig.verify(ext4_target)


def test_target_that_becomes_read_only(rig: Rig, target: Path) -> None:
    """As a file system does that has found a mistake: who wants a file gets an errno, all goes on when it is writable again."""
    first, *_, last = make(rig.tree, 30, _SIZE)
    # Small files: none is open for writing while it waits for the limit.
    command = rig.restore(target, "--limit", "1")
    mount = target.parent
    assert read(target / first) == (rig.tree / first).read_bytes()
    wait_until(
        lambda: not subprocess.run(["mount", "-o", "remount,ro", mount], capture_output=True, check=False).returncode, "ro"
    )
    opens = "try:\n    os.open(sys.argv[1], os.O_RDONLY)\n    print(0)\nexcept OSError as error:\n    print(error.errno)"
    with Task.python(opens, target / last) as task:
        try:
            assert read(target / first) == (rig.tree / first).read_bytes()
            # Where the settler was first (btrfs refuses to sync), the restore has ended: who comes waits for the next agent.
            wait_until(lambda: task.ended() or command.ended(), "the task is refused, or the restore ends")
        finally:
            subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
        with contextlib.suppress(ActiveRestoreError, OSError):
            rig.hurry(target)
        code, said = command.end()
        if code:
            expect_one_line(said)
            rig.finish(rig.resume(target), target)
        assert int(task.output()) in (0, errno.EROFS, errno.EIO)
    rig.verify(target)
