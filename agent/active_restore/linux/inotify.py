"""inotify(7), for what fanotify does not tell: that a directory, or the file system that it is on, is gone."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from active_restore.linux.libc import check, libc

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
_EVENT = struct.Struct("=iIII")
_READ_BYTES = 1 << 16


def init() -> int:
    """inotify_init1(2): a descriptor that does not block."""
    return check(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")


def add_watch(group: int, path: bytes, mask: int) -> int:
    """inotify_add_watch(2): its number. An unmount of the file system is told whatever the mask is."""
    return check(libc.inotify_add_watch(group, path, mask), os.fsdecode(path))


def remove_watch(group: int, number: int) -> None:
    """inotify_rm_watch(2). Raises EINVAL where the kernel has taken it away already."""
    check(libc.inotify_rm_watch(group, number), "inotify_rm_watch")


def numbers(group: int) -> Iterator[int]:
    """The watches of which something has come."""
    try:
        buffer = os.read(group, _READ_BYTES)
    except BlockingIOError:
        return
    start = 0
    while start < len(buffer):
        number, _, _, name_bytes = _EVENT.unpack_from(buffer, start)
        yield number
        start += _EVENT.size + name_bytes
