"""A target that is put back to an older state under its own path (a snapshot of a machine, of LVM, an image); our state stays.

What our state says of files is then not true of the disk any more; markers are.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from active_restore.control.registry import directory_name
from active_restore.marker import MARKER
from active_restore.predict.order import Order, Touch, encode
from tests.kernel.disks import KINDS, MIB, mounted, unmount_for_good
from tests.kernel.rig import marked
from tests.kernel.tasks import python, read, run
from tests.kernel.waiting import wait_until
from tests.restore.agents import kill, make
from tests.torture import bad_server
from tests.torture.test_bad_sources import Remote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.machine import Command
    from tests.kernel.disks import Disk
    from tests.kernel.rig import Rig

_REFUSED = 16
_ATTEMPTS = 10
_CHANGES = "fd = os.open(sys.argv[1], os.O_WRONLY); os.pwrite(fd, b'mine', 100); os.fsync(fd)"
_READS = "fd = os.open(sys.argv[1], os.O_RDONLY); os.write(1, os.pread(fd, 5000, int(sys.argv[2])))"


class Undoable:
    """A disk whose states can be kept and put back."""

    def __init__(self, disk: Disk, place: Path) -> None:
        self.target = disk.mount / "t"
        self._disk = disk
        self._image = place / f"{disk.kind}.img"
        self._kept = place / "kept"

    def keep(self) -> None:
        """What a snapshot would have now."""
        run("fsfreeze", "--freeze", self._disk.mount)
        try:
            run("cp", "--sparse=always", self._image, self._kept)
        finally:
            run("fsfreeze", "--unfreeze", self._disk.mount)

    def put_back(self) -> None:
        """The disk is in that state again, and mounted where it was."""
        unmount_for_good(self._disk.mount)
        run("cp", "--sparse=always", self._kept, self._image)
        run("mount", "-o", "loop", self._image, self._disk.mount)

    def phase(self) -> str:
        """Of the restore, as the target tells it."""
        with contextlib.suppress(OSError):
            return str(json.loads(os.getxattr(self.target, MARKER))["phase"])
        return ""


@contextlib.contextmanager
def undoable(rig: Rig, kind: str) -> Iterator[Undoable]:
    place = rig.place / "disk"
    with mounted(kind, place, 512 * MIB) as disk:
        yield Undoable(disk, place)


def settled(*paths: Path) -> None:
    """Return when they are placeholders no more."""
    for path in paths:
        wait_until(lambda path=path: not marked(path), f"{path} is settled")  # type: ignore[misc]


def end(rig: Rig, command: Command, how: str) -> None:
    """The agent is stopped by its user, killed, or killed with all that it left."""
    if how == "stopped":
        command.signal(signal.SIGINT)
        assert command.end()[0] == 130
        return
    kill(command)
    if how == "all killed":
        rig.kill("ar-")


@pytest.mark.parametrize("how", ["stopped", "killed", "all killed"])
@pytest.mark.parametrize("kind", KINDS)
def test_rolled_back_while_it_was_restored(held_rig: Rig, kind: str, how: str) -> None:
    """Files that were settled since are placeholders again: none is read as zeros, and all are restored."""
    first, second, third, fourth, *rest = make(held_rig.tree, 30)
    (held_rig.tree / "large").write_bytes(os.urandom(3 * MIB))
    with undoable(held_rig, kind) as disk:
        target = disk.target
        command = held_rig.hold(target)
        assert read(target / first) == (held_rig.tree / first).read_bytes()
        python(_CHANGES, target / second)
        settled(target / first, target / second)
        disk.keep()
        # A keeper knows that readers may go on there.
        assert read(target / rest[2]) == (held_rig.tree / rest[2]).read_bytes()
        python(_CHANGES, target / third)
        (target / rest[0]).unlink()
        with held_rig.control(target) as client:
            client.limit(0)
            client.promote([name.encode() for name in (fourth, rest[1], "large")])
            wait_until(lambda: not marked(target / "large"), "files are settled")
            client.limit(1)
        settled(target / third, target / fourth)
        end(held_rig, command, how)
        disk.put_back()
        assert marked(target / fourth)
        assert held_rig.run("verify", held_rig.source, target).returncode == 1
        assert held_rig.run("status", target).returncode == 0
        again = held_rig.resume(target)
        for name in (first, third, fourth, "large", *rest[:4]):
            assert read(target / name) == (held_rig.tree / name).read_bytes(), name
        held_rig.finish(again, target)
        changed = bytearray((held_rig.tree / second).read_bytes())
        changed[100:104] = b"mine"
        assert read(target / second) == changed
        (held_rig.tree / second).write_bytes(changed)
        shutil.copystat(target / second, held_rig.tree / second)
        held_rig.verify(target)


def test_rolled_back_after_the_state_was_lost(held_rig: Rig) -> None:
    """A catalog that was made of markers does not have what was settled by then, and is a placeholder again."""
    first, second, third, *_ = make(held_rig.tree)
    with undoable(held_rig, "ext4") as disk:
        command = held_rig.hold(disk.target)
        disk.keep()
        assert read(disk.target / first) == (held_rig.tree / first).read_bytes()
        settled(disk.target / first)
        end(held_rig, command, "all killed")
        shutil.rmtree(held_rig.place / "state")
        command = held_rig.resume(disk.target)
        assert read(disk.target / second) == (held_rig.tree / second).read_bytes()
        settled(disk.target / second)
        end(held_rig, command, "all killed")
        disk.put_back()
        again = held_rig.resume(disk.target)
        for name in (first, second, third):
            assert read(disk.target / name) == (held_rig.tree / name).read_bytes(), name
        held_rig.finish(again, disk.target)
        held_rig.verify(disk.target)


@pytest.mark.parametrize("how", ["stopped", "all killed"])
def test_rolled_back_by_range(held_rig: Rig, how: str) -> None:
    """Pages that were there since are missing again, whatever a keeper remembers of them."""
    make(held_rig.tree, 3)
    (held_rig.tree / "ranged").write_bytes(os.urandom(16 * MIB))
    expected = (held_rig.tree / "ranged").read_bytes()
    with undoable(held_rig, "ext4") as disk:
        command = held_rig.hold(disk.target, "--ranges", "ranged", "--range-threshold", "1MiB")
        for at in (MIB, 8 * MIB):
            assert python(_READS, disk.target / "ranged", str(at)) == expected[at:][:5000]
            if at == MIB:
                disk.keep()
        end(held_rig, command, how)
        disk.put_back()
        again = held_rig.resume(disk.target)
        for at in (8 * MIB, MIB, 12 * MIB):
            assert python(_READS, disk.target / "ranged", str(at)) == expected[at:][:5000]
        held_rig.finish(again, disk.target)
        held_rig.verify(disk.target)


def test_rolled_back_to_before_it_began(held_rig: Rig) -> None:
    """``resume`` refuses, as it does where the target is not mounted, and takes nothing for deleted by its user."""
    first, *_ = make(held_rig.tree)
    with undoable(held_rig, "ext4") as disk:
        disk.target.mkdir()
        disk.keep()
        command = held_rig.hold(disk.target)
        assert read(disk.target / first)
        end(held_rig, command, "all killed")
        disk.put_back()
        done = held_rig.run("resume", disk.target)
        assert (done.returncode, "put back" in done.stderr) == (_REFUSED, True), done.stderr
        assert os.listdir(disk.target) == []
        shutil.rmtree(held_rig.place / "state" / directory_name(str(disk.target)))
        held_rig.finish(held_rig.hold(disk.target), disk.target)
        held_rig.verify(disk.target)


@pytest.mark.parametrize("state", ["lost", "put back"])
def test_rolled_back_to_an_earlier_restore(held_rig: Rig, state: str) -> None:
    """What lies there is another restore's, which goes on when the state of the later one is gone."""
    first, *_ = make(held_rig.tree)
    states = held_rig.place / "state"
    with undoable(held_rig, "ext4") as disk:
        command = held_rig.hold(disk.target)
        disk.keep()
        end(held_rig, command, "all killed")
        subprocess.run(["find", disk.target, "-delete"], check=True)
        states.rename(held_rig.place / "earlier")
        end(held_rig, held_rig.hold(disk.target), "all killed")
        disk.put_back()
        assert held_rig.run("resume", disk.target).returncode == _REFUSED
        assert marked(disk.target / first)
        shutil.rmtree(states / directory_name(str(disk.target)))
        if state == "put back":
            shutil.rmtree(states)
            (held_rig.place / "earlier").rename(states)
        again = held_rig.resume(disk.target)
        assert read(disk.target / first) == (held_rig.tree / first).read_bytes()
        held_rig.finish(again, disk.target)
        held_rig.verify(disk.target)


def caught_laying(rig: Rig, disk: Undoable) -> Command:
    """An agent that is stopped in that phase; begun again where it was faster than we are."""
    for _ in range(_ATTEMPTS):
        command = rig.start("restore", rig.source, disk.target, "--limit", "1")
        wait_until(disk.phase, "it has begun")
        command.signal(signal.SIGSTOP)
        if disk.phase() == "laying":
            return command
        end(rig, command, "all killed")
        subprocess.run(["find", disk.target, "-delete"], check=True)
        shutil.rmtree(rig.place / "state")
    raise AssertionError("it is never seen while it is laid")


def test_rolled_back_to_when_it_was_laid(held_rig: Rig) -> None:
    """Nothing was visible then: all is laid again."""
    first, *_ = make(held_rig.tree)
    (held_rig.tree / "many").mkdir()
    for number in range(4000):
        (held_rig.tree / "many" / f"empty{number}").touch()
    with undoable(held_rig, "ext4") as disk:
        command = caught_laying(held_rig, disk)
        disk.keep()
        command.signal(signal.SIGCONT)
        command.until("ready")
        assert read(disk.target / first) == (held_rig.tree / first).read_bytes()
        end(held_rig, command, "all killed")
        disk.put_back()
        assert disk.phase() == "laying"
        again = held_rig.resume(disk.target)
        assert read(disk.target / first) == (held_rig.tree / first).read_bytes()
        held_rig.finish(again, disk.target)
        held_rig.verify(disk.target)


@pytest.mark.parametrize("older", ["target", "state"])
def test_rolled_back_to_when_it_was_revealed(rig: Rig, older: str) -> None:
    """The head start keeps a restore in that phase. Where it is the state that is old, nothing is laid over a user's writes."""
    remote = Remote(rig.place / "server", rig)
    order = rig.place / "order"
    order.write_bytes(encode(Order(0, tuple(Touch(name.encode(), "", 0) for name in remote.files))))
    badness = remote.spoil(bad_server.silent())
    state = rig.place / "state"
    with contextlib.ExitStack() as stack:
        stack.callback(remote.stop)
        disk = stack.enter_context(undoable(rig, "ext4"))
        words = ("--order", order, "--head-start", "60")
        command = rig.start("restore", rig.source, disk.target, *words)
        wait_until(lambda: badness.met and disk.phase() == "revealing", "its head start has begun")
        with rig.control(disk.target) as client:
            client.limit(1)
        disk.keep()
        shutil.copytree(state, rig.place / "older")
        badness.cure()
        command.until("ready")
        python(_CHANGES, disk.target / "f3")
        end(rig, command, "all killed")
        if older == "target":
            disk.put_back()
            expected = dict(remote.files)
        else:
            shutil.rmtree(state)
            (rig.place / "older").rename(state)
            expected = remote.files | {"f3": remote.files["f3"][:100] + b"mine" + remote.files["f3"][104:]}
        again = rig.resume(disk.target)
        for name, content in expected.items():
            assert read(disk.target / name) == content, name
        rig.finish(again, disk.target)
        for name, content in expected.items():
            assert (disk.target / name).read_bytes() == content, name
        rig.assert_clean(disk.target)


@pytest.mark.native
@pytest.mark.parametrize("known", [True, False], ids=["", "state lost"])
def test_snapshot_of_btrfs_in_its_place(held_rig: Rig, *, known: bool) -> None:
    """Its placeholders are copies, which cannot be filled: refused, and not taken for restored."""
    first, *_ = make(held_rig.tree)
    with mounted("btrfs", held_rig.place / "disk", 512 * MIB) as disk:
        volume, kept = disk.mount / "volume", disk.mount / "kept"
        run("btrfs", "-q", "subvolume", "create", volume)
        command = held_rig.hold(volume / "t")
        run("btrfs", "-q", "subvolume", "snapshot", volume, kept)
        assert read(volume / "t" / first) == (held_rig.tree / first).read_bytes()
        end(held_rig, command, "all killed")
        run("btrfs", "-q", "subvolume", "delete", "--commit-after", volume)
        kept.rename(volume)
        if not known:
            shutil.rmtree(held_rig.place / "state")
        done = held_rig.run("resume", volume / "t")
        assert (done.returncode, "are copies" in done.stderr) == (_REFUSED, True), done.stderr
        assert marked(volume / "t" / first)
