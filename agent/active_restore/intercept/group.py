"""The fanotify group of a guard: how it is made, and which events the kernel holds tasks for."""

from __future__ import annotations

import os

from active_restore.errors import CapabilityMissing
from active_restore.linux import fanotify

_INIT = (
    fanotify.FAN_CLASS_PRE_CONTENT
    | fanotify.FAN_CLOEXEC
    | fanotify.FAN_UNLIMITED_QUEUE
    | fanotify.FAN_UNLIMITED_MARKS
    | fanotify.FAN_REPORT_TID
)
# Read-only: a writable event descriptor cannot be had for running programs, read-only mounts or immutable files, and the
# kernel refuses the task's open where our descriptor fails.
_EVENT_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_LARGEFILE | os.O_NOATIME


def make_group() -> int:
    """A new group's descriptor. Raises ``CapabilityMissing``."""
    try:
        return fanotify.init(_INIT, _EVENT_FLAGS)
    except OSError as error:
        raise CapabilityMissing(
            f"fanotify permission events cannot be had ({error.strerror})", "run as root; see: active-restore doctor"
        ) from error


def check_ranges(place: str) -> None:
    """Raise ``OSError`` where there are no pre-content events on the file system of this directory."""
    group = fanotify.init(fanotify.FAN_CLASS_PRE_CONTENT | fanotify.FAN_CLOEXEC, os.O_RDWR | os.O_CLOEXEC)
    try:
        # On the directory's own inode and without its children: no access raises such an event.
        fanotify.mark_path(group, fanotify.FAN_MARK_ADD, fanotify.FAN_PRE_ACCESS, place)
    finally:
        os.close(group)


def has_ranges(place: str) -> bool:
    """Whether there are."""
    try:
        check_ranges(place)
    except OSError:
        return False
    return True


def supported_mask(group: int, path: str) -> int:
    """The events that the kernel can hold on the file system of ``path``. Raises ``OSError`` where it is none."""
    mark = fanotify.FAN_MARK_ADD | fanotify.FAN_MARK_FILESYSTEM
    unmark = fanotify.FAN_MARK_REMOVE | fanotify.FAN_MARK_FILESYSTEM
    try:
        fanotify.mark_path(group, mark, fanotify.FAN_PRE_ACCESS, path)
    except OSError:
        return fanotify.FAN_OPEN_PERM
    fanotify.mark_path(group, unmark, fanotify.FAN_PRE_ACCESS, path)
    return fanotify.FAN_OPEN_PERM | fanotify.FAN_PRE_ACCESS
