"""Which disks a path lies on, and what sysfs counts about each (Documentation/block/stat.rst)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

_DEVICES = Path("/sys/dev/block")
_SECTOR_BYTES = 512
_DEEPEST = 8


class Disk(NamedTuple):
    """The number of a whole disk."""

    major: int
    minor: int

    @property
    def kernel_number(self) -> int:
        """``dev_t`` as the kernel itself writes it."""
        return self.major << 20 | self.minor


class Counts(NamedTuple):
    """Since boot; ``read_ms`` is the sum of the times that reads took."""

    reads: int
    read_bytes: int
    read_ms: int
    in_flight: int


def disks_below(path: str) -> set[Disk]:
    """The whole disks below a path, also those below partitions, device-mapper, RAID and loop devices; none for networks."""
    found: set[Disk] = set()
    with contextlib.suppress(OSError):
        _descend_from(path, found, _DEEPEST)
    return found


def _descend_from(path: str, found: set[Disk], depth: int) -> None:
    device = os.stat(path).st_dev
    _descend(device if os.major(device) else _mounted_device(path), found, depth)


def _mounted_device(path: str) -> int:
    """The device that a file system with numbers of its own (btrfs) is mounted from; 0 where there is none."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    finally:
        os.close(fd)
    mount = dict(line.split(":", 1) for line in lines)["mnt_id"].strip()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, kind = line.partition(" - ")
        if place.split()[0] == mount:
            return os.stat(kind.split()[1]).st_rdev
    return 0


def _descend(device: int, found: set[Disk], depth: int) -> None:
    place = (_DEVICES / f"{os.major(device)}:{os.minor(device)}").resolve()
    if not depth or not (place / "dev").exists():
        return
    if (place / "partition").exists():
        place = place.parent
    major, _, minor = (place / "dev").read_text().strip().partition(":")
    found.add(Disk(int(major), int(minor)))
    for below in (place / "slaves").glob("*/dev"):
        lower, _, part = below.read_text().strip().partition(":")
        _descend(os.makedev(int(lower), int(part)), found, depth - 1)
    with contextlib.suppress(OSError):
        image = (place / "loop/backing_file").read_text().strip()
        _descend_from(image, found, depth - 1)


def counts(disk: Disk) -> Counts:
    """What happened on a disk; zeros where it is gone."""
    try:
        words = [int(word) for word in (_DEVICES / f"{disk.major}:{disk.minor}" / "stat").read_bytes().split()]
    except (OSError, ValueError):
        return Counts(0, 0, 0, 0)
    return Counts(words[0], words[2] * _SECTOR_BYTES, words[3], words[8])
