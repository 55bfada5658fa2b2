"""FS_IOC_FIEMAP: which ranges of a file were ever written, as the file system itself remembers it."""

from __future__ import annotations

import array
import errno
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
_UNWRITTEN = 0x800
_NOTHING_WRITTEN = 0x2 | 0x4 | _UNWRITTEN
_LOST = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})


def written(fd: int) -> Iterator[tuple[int, int]]:
    """(offset, end) of what was written, in ascending order, after all of it is on the disk. Raises ``OSError``.

    Holes are left out, and so is what is only allocated: lseek(2) with SEEK_DATA cannot tell that from data once a page
    of it was read.
    """
    return (extent for extent, what in _extents(fd) if not what & _NOTHING_WRITTEN)


def unwritten(fd: int) -> Iterator[tuple[int, int]]:
    """(offset, end) of what is allocated but was never written, after everything else is on the disk. Raises ``OSError``."""
    return (extent for extent, what in _extents(fd) if what & _UNWRITTEN)


def _extents(fd: int) -> Iterator[tuple[tuple[int, int], int]]:
    start, flags = 0, _SYNC
    while True:
        buffer = array.array("B", bytes(_HEADER.size + _EXTENTS_A_CALL * _EXTENT.size))
        _HEADER.pack_into(buffer, 0, start, (1 << 64) - 1 - start, flags, 0, _EXTENTS_A_CALL, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer, True)
        except OSError as error:
            if not flags or error.errno not in _LOST:
                raise
            # Somebody's earlier write met this, and we are told first. By now all has been tried.
            flags = 0
            continue
        count = _HEADER.unpack_from(buffer, 0)[3]
        for number in range(count):
            logical, _, length, what = _EXTENT.unpack_from(buffer, _HEADER.size + number * _EXTENT.size)
            start = logical + length
            yield (logical, start), what
            if what & _LAST:
                return
        if not count:
            return
        # What was flushed stays flushed: nobody writes meanwhile.
        flags = 0
