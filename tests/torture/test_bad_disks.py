"""A disk over its quota: who wants a file gets an errno, nothing is lost, and it goes on."""

from __future__ import annotations

import errno
import subprocess
from typing import TYPE_CHECKING

from tests.kernel.disks import MIB, mounted
from tests.kernel.tasks import read, refused
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
