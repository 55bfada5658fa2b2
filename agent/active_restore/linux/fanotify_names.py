"""fanotify(7) events that name a directory entry instead of opening it: nobody waits, and no file is touched."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from active_restore.linux import fanotify
from active_restore.linux.libc import check, libc

FAN_CLASS_NOTIF = 0x0
FAN_NONBLOCK = 0x2
FAN_REPORT_DFID_NAME = 0xC00
FAN_OPEN = 0x20
FAN_MARK_DONT_FOLLOW = 0x4

_METADATA = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBH8xI")
_INFO_TYPE_DFID_NAME = 2


class Opened(NamedTuple):
    """Process ``pid`` opened ``name`` in the directory with this ``handle`` (as ``linux.handles`` has it)."""

    pid: int
    handle: bytes
    name: bytes


def parse(buffer: bytes) -> list[Opened]:
    """The events of one read(2) from a group with FAN_REPORT_DFID_NAME; those without a name are left out."""
    events = []
    start = 0
    while len(buffer) - start >= _METADATA.size:
        length, _, _, at, _, _, pid = _METADATA.unpack_from(buffer, start)
        kind, _, _, handle_bytes = _INFO.unpack_from(buffer, start + at) if at + _INFO.size <= length else (0, 0, 0, 0)
        if kind == _INFO_TYPE_DFID_NAME:
            # struct file_handle without its length: type (4 bytes), then the handle; the name follows.
            begin = start + at + _INFO.size
            end = begin + 4 + handle_bytes
            events.append(Opened(pid, buffer[begin:end], buffer[end : buffer.index(b"\0", end)]))
        start += max(length, _METADATA.size)
    return events


def ignore(group: int, directory: int, name: bytes) -> None:
    """No more events of opens of this file, as long as its inode stays in memory."""
    flags = (
        fanotify.FAN_MARK_ADD
        | fanotify.FAN_MARK_IGNORE
        | fanotify.FAN_MARK_IGNORED_SURV_MODIFY
        | fanotify.FAN_MARK_EVICTABLE
        | FAN_MARK_DONT_FOLLOW
    )
    check(libc.fanotify_mark(group, flags, FAN_OPEN, directory, name), os.fsdecode(name))
