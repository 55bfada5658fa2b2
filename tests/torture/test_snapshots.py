"""Snapshots of the disk below a half-restored target (LVM, a storage array): what they hold, and how they are finished.

A copy of the image while the file system is frozen is what such a snapshot is; tests/vm/inside/test_lvm.py takes real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from active_restore.marker import MARKER
from active_restore.restore.job import only_copy
from tests.kernel.disks import MIB, mounted, unmount_for_good
from tests.kernel.rig import marked
from tests.kernel.tasks import Task, read, run
from tests.kernel.waiting import wait_until
from tests.restore.agents import kill, make

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.disks import Disk
    from tests.kernel.rig import Rig

_NEED_OPTIONS = {"ext4": "loop", "xfs": "loop,nouuid"}
_BUSY, _REFUSED = 11, 16


@pytest.mark.parametrize("kind", _NEED_OPTIONS)
def test_snapshot_of_the_disk(held_rig: Rig, kind: str) -> None:
    """The restore goes on; the snapshot is finished by ``resume`` once the original is, and not before."""
    first, second, third, *_ = make(held_rig.tree, 30, 200_000)
    copy, mount = held_rig.place / "copy", held_rig.place / "snapshot"
    mount.mkdir()
    with mounted(kind, held_rig.place / "disk", 512 * MIB) as disk, contextlib.ExitStack() as stack:
        target = disk.mount / "t"
        command = held_rig.hold(target)
        assert read(target / first) == (held_rig.tree / first).read_bytes()
        run("fsfreeze", "--freeze", disk.mount)
        try:
            with Task("cat", target / second) as task:
                task.held()
                run("cp", "--sparse=always", held_rig.place / "disk" / f"{kind}.img", copy)
                run("fsfreeze", "--unfreeze", disk.mount)
                assert task.output() == (held_rig.tree / second).read_bytes()
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", disk.mount], check=False, capture_output=True)
        run("mount", "-o", _NEED_OPTIONS[kind], copy, mount)
        stack.callback(unmount_for_good, mount)
        inside = mount / "t"
        assert (inside / first).read_bytes() == (held_rig.tree / first).read_bytes()
        assert all(marked(inside / name) for name in (second, third))
        done = held_rig.run("resume", inside)
        assert (done.returncode, "is a copy of" in done.stderr) == (_REFUSED, True), done.stderr
        held_rig.finish(command, target)
        held_rig.verify(target)
        again = held_rig.resume(inside)
        assert read(inside / second) == (held_rig.tree / second).read_bytes()
        held_rig.finish(again, inside)
        held_rig.verify(inside)


def test_two_snapshots_at_once(held_rig: Rig) -> None:
    """They are one restore to whatever knows it by its id (the pins of BPF): one after the other, whoever comes first."""
    first, *_ = make(held_rig.tree)
    places = [held_rig.place / name for name in ("one", "two")]
    with mounted("ext4", held_rig.place / "disk", 512 * MIB) as disk, contextlib.ExitStack() as stack:
        command = held_rig.hold(disk.mount / "t")
        run("fsfreeze", "--freeze", disk.mount)
        try:
            for place in places:
                run("cp", "--sparse=always", held_rig.place / "disk" / "ext4.img", f"{place}.img")
        finally:
            run("fsfreeze", "--unfreeze", disk.mount)
        held_rig.finish(command, disk.mount / "t")
        for place in places:
            place.mkdir()
            run("mount", "-o", "loop", f"{place}.img", place)
            stack.callback(unmount_for_good, place)
        with only_copy(json.loads(os.getxattr(places[0] / "t", MARKER))["restore_id"]):
            assert held_rig.run("resume", places[1] / "t").returncode == _BUSY
        rivals = {place / "t": held_rig.start("resume", place / "t") for place in places}
        wait_until(lambda: any(rival.ended() for rival in rivals.values()), "one is refused")
        (refused, loser), (target, winner) = sorted(rivals.items(), key=lambda rival: not rival[1].ended())
        assert loser.end()[0] in (_BUSY, _REFUSED)
        winner.until("ready")
        kill(winner)
        done = held_rig.run("resume", refused)
        assert (done.returncode, "is a copy of" in done.stderr) == (_REFUSED, True), done.stderr
        for inside in (target, refused):
            again = held_rig.resume(inside)
            assert read(inside / first) == (held_rig.tree / first).read_bytes()
            held_rig.finish(again, inside)
            held_rig.verify(inside)


@pytest.mark.native
def test_snapshot_of_btrfs_is_not_finished(held_rig: Rig, disks: Callable[[str], Disk]) -> None:
    """Its placeholders cannot be told from what a user has copied: ``resume`` refuses it, also when the original is there."""
    first, *_ = make(held_rig.tree)
    disk = disks("btrfs")
    target, snapshot = disk.mount / "original", disk.mount / "snapshot"
    command = held_rig.hold(target)
    run("btrfs", "-q", "subvolume", "snapshot", disk.mount, snapshot)
    try:
        for word in ("is a copy of", "are copies"):
            done = held_rig.run("resume", snapshot / "original")
            assert (done.returncode, word in done.stderr) == (_REFUSED, True), done.stderr
            assert marked(snapshot / "original" / first)
            if not command.ended():
                held_rig.finish(command, target)
    finally:
        run("btrfs", "-q", "subvolume", "delete", snapshot)
    held_rig.verify(target)
