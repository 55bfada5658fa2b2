"""A disk over its quota: who wants a file gets an errno, nothing is lost, and it goes on."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

from tests.kernel.disks import MIB, mounted
from tests.kernel.tasks import read, refused
from tests.kernel.waiting import wait_until
from tests.restore.agents import make

if TYPE_CHECKING:
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
