"""A disk over its quota: who wants a file gets an errno, nothing is lost, and it goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from typing import TYPE_CHECKING

from tests.kernel.disks import MIB, mounted
from tests.kernel.tasks import read, refused
from tests.kernel.waiting import wait_until
from tests.restore.agents import make

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.rig import Rig


def test_disk_that_loses_what_is_written(rig: Rig) -> None:
    """Nothing below has room for what the file system took: one line, an end, and tasks wait for the next agent."""
    (rig.tree / "big").write_bytes(os.urandom(48 * MIB))
    small, mount = rig.place / "small", rig.place / "thin"
    small.mkdir()
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={24 * MIB}", "tmpfs", small], check=True)
    try:
        with (small / "image").open("wb") as image:
            image.truncate(256 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", small / "image"], check=True)
        subprocess.run(["mount", "-o", "loop", small / "image", mount], check=True)
        try:
            command = rig.start("restore", rig.source, mount / "t")
            code, errors = command.end()
            assert code not in (0, 130), errors
            assert "Traceback" not in errors
            assert "active-restore: error: " in errors, errors
        finally:
            wait_until(lambda: not subprocess.run(["umount", mount], check=False).returncode, "the disk is free")
    finally:
        subprocess.run(["umount", small], check=True)
    wait_until(lambda: not rig.processes(), "keepers have nothing left to guard")


def btrfs(*words: str | Path) -> None:
    subprocess.run(["btrfs", "-q", *words], check=True)


def limit(mount: Path, limit_bytes: int | str) -> None:
    """The group of the only subvolume. Asked by a path inside it the kernel refuses even that with EDQUOT (6.18)."""
    btrfs("qgroup", "limit", str(limit_bytes), "0/256", mount)


@contextlib.contextmanager
def grouped(place: Path) -> Iterator[tuple[Path, Path]]:
    """A btrfs with quota groups: where it is mounted, and a target in its only subvolume."""
    with mounted("btrfs", place) as disk:
        btrfs("quota", "enable", disk.mount)
        btrfs("subvolume", "create", disk.mount / "volume")
        yield disk.mount, disk.mount / "volume/t"


def test_quota(held_rig: Rig) -> None:
    """A group quota of btrfs, which root is bound to, too: EDQUOT for who wants a file; with more room all is restored."""
    make(held_rig.tree, 4, 12 * MIB)
    with grouped(held_rig.place / "limited") as (mount, target):
        command = held_rig.hold(target)
        limit(mount, 16 * MIB)
        errors = [refused(target / f"f{number:04}") for number in range(4)]
        assert errno.EDQUOT in errors
        assert set(errors) <= {0, errno.EDQUOT}
        limit(mount, "none")
        assert read(target / "f0003") == (held_rig.tree / "f0003").read_bytes()
        held_rig.finish(command, target)
        held_rig.verify(target)


def test_markers_over_the_quota(rig: Rig) -> None:
    """At its limit a group refuses even to take a marker away: it goes once there is room, and none is left."""
    make(rig.tree, 300, MIB // 4)
    with grouped(rig.place / "limited") as (mount, target):
        command = rig.restore(target, "--limit", "20MiB/s")
        wait_until(lambda: sum(path.stat().st_blocks > 0 for path in target.glob("f*")) > 4, "some are filled")
        limit(mount, 16384)
        assert command.until("notice")["text"].endswith("the disk is full")
        # Those are durable, and asked to lose their marker.
        wait_until(lambda: command.until("progress")["files_done"], "some are settled")
        limit(mount, "none")
        rig.finish(command, target)
        rig.verify(target)


def test_over_the_quota_from_the_first_moment(held_rig: Rig) -> None:
    """No room for anything once it is ready: a writer is refused, and may go on when there is; nobody else notices."""
    make(held_rig.tree, 4, 2 * MIB)
    with grouped(held_rig.place / "limited") as (mount, target):
        command = held_rig.hold(target)
        limit(mount, 16384)
        assert refused(target / "f0001", "os.O_RDWR") == errno.EDQUOT
        limit(mount, "none")
        assert read(target / "f0000") == (held_rig.tree / "f0000").read_bytes()
        limit(mount, 16384)
        assert refused(target / "f0000", "os.O_RDWR") == errno.EDQUOT
        assert read(target / "f0000") == (held_rig.tree / "f0000").read_bytes()
        limit(mount, "none")
        assert refused(target / "f0000", "os.O_RDWR") == 0
        held_rig.finish(command, target)
        held_rig.verify(target)
