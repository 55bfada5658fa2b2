"""fanotify(7) events that name a directory entry instead of opening it: nobody waits, and no file is touched."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from active_restore.linux import fanotify
from active_restore.linux.libc import check, libc

if TYPE_CHECKING:
    from collections.abc import Iterator

FAN_CLASS_NOTIF = 0x0
FAN_NONBLOCK = 0x2
FAN_REPORT_DFID_NAME = 0xC00
FAN_REPORT_FID = 0x200
FAN_MODIFY = 0x2
FAN_ATTRIB = 0x4
FAN_CLOSE_WRITE = 0x8
FAN_OPEN = 0x20
FAN_MOVED_FROM = 0x40
FAN_MOVED_TO = 0x80
FAN_CREATE = 0x100
FAN_DELETE = 0x200
FAN_ONDIR = 0x4000_0000
FAN_MARK_DONT_FOLLOW = 0x4

_METADATA = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBH8xI")
_INFO_TYPE_FID = 1
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


class Changed(NamedTuple):
    """Something happened to ``name`` in the directory with this ``handle``; to the directory itself where the name is ``.``.

    Without a name it is the handle of the file; both are empty where events were lost (FAN_Q_OVERFLOW, 0x4000).
    """

    mask: int
    handle: bytes
    name: bytes


def parse_changes(buffer: bytes) -> Iterator[Changed]:
    """The events of one read(2) from a group with FAN_REPORT_DFID_NAME and FAN_REPORT_FID."""
    start = 0
    while len(buffer) - start >= _METADATA.size:
        length, _, _, at, mask, _, _ = _METADATA.unpack_from(buffer, start)
        handle = name = b""
        # The name comes first where there is one.
        if at + _INFO.size <= length:
            kind, _, _, handle_bytes = _INFO.unpack_from(buffer, start + at)
            begin = start + at + _INFO.size
            end = begin + 4 + handle_bytes
            if kind == _INFO_TYPE_DFID_NAME:
                handle, name = buffer[begin:end], buffer[end : buffer.index(b"\0", end)]
            elif kind == _INFO_TYPE_FID:
                handle = buffer[begin:end]
        yield Changed(mask, handle, name)
        start += max(length, _METADATA.size)


def ignore(group: int, directory: int, name: bytes, *, until_modified: bool = False) -> None:
    """No more events of opens of this file, as long as its inode stays in memory (and it is not written to)."""
    flags = fanotify.FAN_MARK_ADD | fanotify.FAN_MARK_IGNORE | fanotify.FAN_MARK_EVICTABLE | FAN_MARK_DONT_FOLLOW
    if not until_modified:
        flags |= fanotify.FAN_MARK_IGNORED_SURV_MODIFY
    check(libc.fanotify_mark(group, flags, FAN_OPEN, directory, name), os.fsdecode(name))
