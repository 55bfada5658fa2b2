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


def pieces(descriptor: int, size: int, mtime_ns: int, part: tuple[int, int] | None = None) -> Iterator[tuple[int, bytes]]:
    """Offset and data of everything that is no hole, ascending; ``part`` (begin and end) leaves out the rest of the file.

    Raises ``ContentError`` where the file is not a regular one of this size and time, or where it changes until the end
    of the iteration, and ``OSError`` where it cannot be read.
    """
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode) or (before.st_size, before.st_mtime_ns) != (size, mtime_ns):
        raise _changed()
    for offset, length in _data(descriptor, before, *(part or (0, size))):
        data = os.pread(descriptor, length, offset)
        if len(data) != length:
            raise _changed()
        yield offset, data
    after = os.fstat(descriptor)
    # The change time cannot be put back: it tells what a restored modification time hides.
    if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != (size, mtime_ns, before.st_ctime_ns):
        raise _changed()


def _data(descriptor: int, status: os.stat_result, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of what to read, from ``end`` to ``size``."""
    if status.st_blocks * 512 >= status.st_size:
        yield from _cut(end, size)
        return
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= size:
            return
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield from _cut(start, end)


def _cut(start: int, end: int) -> Iterator[tuple[int, int]]:
    for offset in range(start, end, PIECE_BYTES):
        yield offset, min(PIECE_BYTES, end - offset)


def _changed() -> ContentError:
    return ContentError("changed while it was restored", "restore from something that stands still, such as a snapshot")
