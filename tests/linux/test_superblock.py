"""The UUID of a file system, by each way to ask for it, is the one on its disk."""

from __future__ import annotations

import os
import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest

from active_restore.linux import superblock

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.disks import Disk

_WAYS = {"ext4": superblock._by_ext4, "xfs": superblock._by_xfs}


@pytest.mark.parametrize("kind", _WAYS)
def test_uuid(disks: Callable[[str], Disk], kind: str) -> None:
    disk = disks(kind)
    image = disk.mount.parent / f"{disk.kind}.img"
    told = subprocess.run(["blkid", "-p", "-o", "value", "-s", "UUID", image], check=True, capture_output=True, text=True)
    expected = uuid.UUID(told.stdout.strip()).bytes
    assert superblock.uuid(str(disk.mount)) == expected
    fd = os.open(disk.mount, os.O_RDONLY)
    try:
        assert _WAYS[kind](fd) == expected
    finally:
        os.close(fd)


def test_none() -> None:
    with pytest.raises(OSError, match="ioctl"):
        superblock.uuid("/proc")
