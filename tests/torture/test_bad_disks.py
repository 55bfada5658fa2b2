"""Disks that are full, over quota, read-only or that fail: who wants a file gets an errno, nothing is lost, and it goes on."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

from tests.kernel.disks import MIB, mounted
from tests.kernel.tasks import read, refused
from tests.kernel.waiting import wait_until
from tests.restore.test_deaths import make

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig


def btrfs(*words: str | Path) -> None:
    subprocess.run(["btrfs", "-q", *words], check=True)


def test_quota(held_rig: Rig) -> None:
    """A group quota of btrfs, which root is bound to, too: EDQUOT for who wants a file; with more room all is restored."""
    make(held_rig.tree, 4, 12 * MIB)
    with mounted("btrfs", held_rig.place / "limited") as disk:
        btrfs("quota", "enable", disk.mount)
        btrfs("subvolume", "create", disk.mount / "volume")
        target = disk.mount / "volume/t"
        command = held_rig.hold(target)
        btrfs("qgroup", "limit", str(16 * MIB), disk.mount / "volume")
        errors = [refused(target / f"f{number:04}") for number in range(4)]
        assert errno.EDQUOT in errors
        assert set(errors) <= {0, errno.EDQUOT}
        btrfs("qgroup", "limit", "none", disk.mount / "volume")
        assert read(target / "f0003") == (held_rig.tree / "f0003").read_bytes()
        held_rig.finish(command, target)
        held_rig.verify(target)


def test_read_only_for_a_while(held_rig: Rig) -> None:
    """Somebody remounts the disk read-only while placeholders are left: errors, no zeros; writable again, it goes on."""
    first, second, *_ = make(held_rig.tree)
    with mounted("ext4", held_rig.place / "moody") as disk:
        target = disk.mount / "t"
        command = held_rig.hold(target)
        remount = ["mount", "-o", "remount,ro", disk.mount]
        wait_until(lambda: not subprocess.run(remount, check=False, capture_output=True).returncode, "it is read-only")
        assert refused(target / first) in (errno.EROFS, errno.EIO)
        subprocess.run(["mount", "-o", "remount,rw", disk.mount], check=True)
        assert read(target / first) == (held_rig.tree / first).read_bytes()
        assert read(target / second) == (held_rig.tree / second).read_bytes()
        held_rig.finish(command, target)
        held_rig.verify(target)


def test_disk_that_cannot_keep_what_it_took(held_rig: Rig) -> None:
    """A disk with more blocks than there are (thin provisioning): writes fail only when they are made durable.

    The restore does not say that it is done; markers stay; when the disk has room again, resume restores what it lost.
    """
    make(held_rig.tree, 6, 8 * MIB)
    thin = held_rig.place / "thin"
    thin.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "thin", thin], check=True)
    try:
        with mounted("ext4", thin, 300 * MIB) as disk:
            target = disk.mount / "t"
            command = held_rig.hold(target)
            held_rig.hurry(target)
            code, errors = command.end()
            assert code in (1, 3), errors
            assert "Traceback" not in errors
            subprocess.run(["mount", "-o", "remount,size=400m", thin], check=True)
            _mount_again(disk.mount, thin / "ext4.img")
            done = held_rig.run("resume", target)
            assert done.returncode == 0, done.stderr
            for path in held_rig.tree.iterdir():
                assert read(target / path.name) == path.read_bytes()
            held_rig.assert_clean(target)
    finally:
        subprocess.run(["umount", thin], check=True)


def _mount_again(mount: Path, image: Path) -> None:
    """As after the repair of a disk that has failed."""
    wait_until(lambda: not subprocess.run(["umount", mount], check=False, capture_output=True).returncode, "it is unmounted")
    assert subprocess.run(["e2fsck", "-fy", image], check=False, capture_output=True).returncode in (0, 1)
    os.sync()
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
