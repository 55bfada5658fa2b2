"""cachestat(2), from Linux 6.5 on: which parts of a file are in the page cache."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from active_restore.linux.libc import check, libc

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE_BYTES = 4096
_SYS_CACHESTAT = 451
# Of the whole file first: all that is asked for small parts costs a call each.
_GRAIN_BYTES = 256 << 10


def cached_bytes(fd: int, offset: int, length: int) -> int:
    """How many of these bytes are in the page cache. Raises ``OSError``: ENOSYS before 6.5, EPERM for who may not write."""
    span = (ctypes.c_uint64 * 2)(offset, length)
    found = (ctypes.c_uint64 * 5)()
    check(libc.syscall(_SYS_CACHESTAT, ctypes.c_uint(fd), span, found, ctypes.c_uint(0)), f"fd {fd}")
    return int(found[0]) * _PAGE_BYTES


def cached(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """``(offset, length)`` of stretches of which something is in the page cache, ascending, in grains of 256 KiB."""
    begin = end = 0
    for offset, length in _parts(fd, 0, -(-size // _GRAIN_BYTES)):
        if offset != end and end > begin:
            yield begin, end - begin
        if offset != end:
            begin = offset
        end = offset + length
    if end > begin:
        yield begin, min(end, size) - begin


def _parts(fd: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Of these grains."""
    offset, length = first * _GRAIN_BYTES, (last - first) * _GRAIN_BYTES
    found = cached_bytes(fd, offset, length) if length else 0
    if found == length or (found and last - first == 1):
        if length:
            yield offset, length
    elif found:
        middle = (first + last) // 2
        yield from _parts(fd, first, middle)
        yield from _parts(fd, middle, last)
