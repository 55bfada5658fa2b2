"""The content of an open file that must stand still while it is read: data without holes, in pieces."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from active_restore.errors import ContentError

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES = 1 << 20


def pieces(descriptor: int, size: int, mtime_ns: int) -> Iterator[tuple[int, bytes]]:
    """Offset and data of everything that is no hole, ascending.

    Raises ``ContentError`` where the file is not a regular one of this size and time, or where it changes until the end
    of the iteration, and ``OSError`` where it cannot be read.
    """
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode) or (before.st_size, before.st_mtime_ns) != (size, mtime_ns):
        raise _changed()
    for offset, length in _data(descriptor, before):
        data = os.pread(descriptor, length, offset)
        if len(data) != length:
            raise _changed()
        yield offset, data
    after = os.fstat(descriptor)
    # The change time cannot be put back: it tells what a restored modification time hides.
    if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != (size, mtime_ns, before.st_ctime_ns):
        raise _changed()


def _data(descriptor: int, status: os.stat_result) -> Iterator[tuple[int, int]]:
    """Offset and length of what to read."""
    size = status.st_size
    if status.st_blocks * 512 >= size:
        yield from _cut(0, size)
        return
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield from _cut(start, end)


def _cut(start: int, end: int) -> Iterator[tuple[int, int]]:
    for offset in range(start, end, PIECE_BYTES):
        yield offset, min(PIECE_BYTES, end - offset)


def _changed() -> ContentError:
    return ContentError("changed while it was restored", "restore from something that stands still, such as a snapshot")
