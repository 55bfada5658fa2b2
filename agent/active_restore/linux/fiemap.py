"""FS_IOC_FIEMAP: which ranges of a file were ever written, as the file system itself remembers it."""

from __future__ import annotations

import array
import fcntl
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_FS_IOC_FIEMAP = 0xC020660B
_HEADER = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQ16xI12x")
_EXTENTS_A_CALL = 512
_SYNC = 0x1
_LAST = 0x1
# Not on the disk (yet), or allocated but never written: reads as zeros.
_NOTHING_WRITTEN = 0x2 | 0x4 | 0x800


def written(fd: int) -> Iterator[tuple[int, int]]:
    """(offset, end) of what was written, in ascending order, after all of it is on the disk. Raises ``OSError``.

    Holes are left out, and so is what is only allocated: lseek(2) with SEEK_DATA cannot tell that from data once a page
    of it was read.
    """
    start, flags = 0, _SYNC
    while True:
        buffer = array.array("B", bytes(_HEADER.size + _EXTENTS_A_CALL * _EXTENT.size))
        _HEADER.pack_into(buffer, 0, start, (1 << 64) - 1 - start, flags, 0, _EXTENTS_A_CALL, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer, True)
        count = _HEADER.unpack_from(buffer, 0)[3]
        for number in range(count):
            logical, _, length, what = _EXTENT.unpack_from(buffer, _HEADER.size + number * _EXTENT.size)
            start = logical + length
            if not what & _NOTHING_WRITTEN:
                yield logical, start
            if what & _LAST:
                return
        if not count:
            return
        # What was flushed stays flushed: nobody writes meanwhile.
        flags = 0
