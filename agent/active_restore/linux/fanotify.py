"""fanotify(7) with permission events. Structures and flags as in the kernel's ``uapi/linux/fanotify.h``."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

from active_restore.linux.libc import check, libc

FAN_CLOEXEC = 0x1
FAN_CLASS_PRE_CONTENT = 0x8
FAN_UNLIMITED_QUEUE = 0x10
FAN_UNLIMITED_MARKS = 0x20
FAN_REPORT_TID = 0x100

FAN_CLOSE_NOWRITE = 0x10
FAN_OPEN_PERM = 0x1_0000
FAN_PRE_ACCESS = 0x10_0000

FAN_MARK_ADD = 0x1
FAN_MARK_REMOVE = 0x2
FAN_MARK_MOUNT = 0x10
FAN_MARK_IGNORED_SURV_MODIFY = 0x40
FAN_MARK_FLUSH = 0x80
FAN_MARK_FILESYSTEM = 0x100
FAN_MARK_EVICTABLE = 0x200
FAN_MARK_IGNORE = 0x400

FAN_ALLOW = 1
FAN_DENY = 2

_AT_FDCWD = -100
_METADATA = struct.Struct("=IBBHQii")
_RANGE = struct.Struct("=BBHIQQ")
_RESPONSE = struct.Struct("=iI")
_INFO_TYPE_RANGE = 6

libc.fanotify_init.argtypes = [ctypes.c_uint, ctypes.c_uint]
libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]


class Event(NamedTuple):
    """A permission event. ``fd`` is ours to answer and close; ``tid`` is the thread id under FAN_REPORT_TID.

    ``range`` is (offset, length) in bytes of a pre-content event, ``None`` for others.
    """

    mask: int
    fd: int
    tid: int
    range: tuple[int, int] | None


def init(flags: int, event_flags: int) -> int:
    """fanotify_init(2): a new group's descriptor."""
    return check(libc.fanotify_init(flags, event_flags), "fanotify_init")


def mark_path(group: int, flags: int, mask: int, path: str) -> None:
    """fanotify_mark(2) for what ``path`` leads to."""
    check(libc.fanotify_mark(group, flags, mask, _AT_FDCWD, os.fsencode(path)), path)


def watches_filesystem(group: int, path: str) -> bool:
    """Whether the group has a mark on the file system of ``path``: it is lost where that is unmounted, though not the group.

    Asked by taking an event from it that nobody has asked for.
    """
    try:
        mark_path(group, FAN_MARK_REMOVE | FAN_MARK_FILESYSTEM, FAN_CLOSE_NOWRITE, path)
    except FileNotFoundError:
        return False
    return True


def mark_fd(group: int, flags: int, mask: int, fd: int) -> None:
    """fanotify_mark(2) for the inode (or the mount, or the file system) behind ``fd``."""
    check(libc.fanotify_mark(group, flags, mask, fd, None), f"fd {fd}")


def parse(buffer: bytes) -> list[Event]:
    """The events of one read(2) from a group."""
    events = []
    start = 0
    while len(buffer) - start >= _METADATA.size:
        length, _, _, metadata_length, mask, fd, tid = _METADATA.unpack_from(buffer, start)
        span = None
        info = start + metadata_length
        while info + 4 <= start + length:
            kind, _, info_length = struct.unpack_from("=BBH", buffer, info)
            if kind == _INFO_TYPE_RANGE:
                span = _RANGE.unpack_from(buffer, info)[4:]
            info += max(info_length, 4)
        events.append(Event(mask, fd, tid, span))
        start += length
    return events


def respond(group: int, number: int, response: int) -> None:
    """Answer the event whose descriptor had this number in the process that read it. Raises ENOENT when it is gone."""
    os.write(group, _RESPONSE.pack(number, response))


def deny(errno: int) -> int:
    """FAN_DENY with an errno for the task (kernel >= 6.13, pre-content groups; a few errnos only)."""
    return FAN_DENY | errno << 24
