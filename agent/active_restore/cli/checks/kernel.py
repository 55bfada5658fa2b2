"""What the kernel offers to hold a task; each operation is tried on a scratch file of our own."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING

from active_restore.cli.checks.finding import Finding
from active_restore.linux import fanotify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CLASS = fanotify.FAN_CLASS_PRE_CONTENT | fanotify.FAN_CLOEXEC
_EVENT_FLAGS = os.O_RDWR | os.O_CLOEXEC
_UNLIMITED = fanotify.FAN_UNLIMITED_QUEUE | fanotify.FAN_UNLIMITED_MARKS


def findings() -> Iterator[Finding]:
    """Version, fanotify, /proc and pressure information."""
    release = os.uname().release
    yield Finding("kernel", True, "advised", release, "what counts is what follows, not the number")
    permission = _attempt(_permission_events)
    yield Finding(
        "fanotify permission events",
        not permission,
        "fanotify",
        permission or "a task that opens a file can be held",
        "they hold a task until the content of its file is there",
        "use a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y (any of Debian, Ubuntu, Fedora, RHEL)",
    )
    ignore = _attempt(_ignore_marks)
    yield Finding(
        "evictable ignore marks",
        not ignore,
        "fanotify",
        ignore or "files that are no placeholders cost one event, then nothing",
        "without them every open of every file on the file system would be answered by the agent",
        "use kernel 6.0 or newer",
    )
    thread_ids = _attempt(lambda: os.close(fanotify.init(_CLASS | _UNLIMITED | fanotify.FAN_REPORT_TID, _EVENT_FLAGS)))
    yield Finding(
        "fanotify thread ids",
        not thread_ids,
        "fanotify",
        thread_ids or "events name the thread that waits",
        "they tell readers from writers and our own threads from others",
        "use kernel 4.20 or newer",
    )
    system_call = _attempt(_system_call)
    yield Finding(
        "/proc/PID/syscall",
        not system_call,
        "advised",
        system_call or "shows what a held task is about to do",
        "without it every open counts as one for writing, which is slower but safe",
        "use a kernel with CONFIG_HAVE_ARCH_TRACEHOOK, and do not hide /proc from root",
    )
    pressure = _attempt(lambda: os.close(os.open("/proc/pressure/io", os.O_RDONLY)))
    yield Finding(
        "pressure information",
        not pressure,
        "advised",
        pressure or "/proc/pressure/io can be read",
        "the background gives way when tasks wait for I/O",
        "boot with psi=1, or set --limit",
    )


def _attempt(operation: Callable[[], None]) -> str:
    """Empty where it works, else what went wrong."""
    try:
        operation()
    except OSError as error:
        reason = f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
        return f"{reason} (not allowed here)" if error.errno == errno.EPERM else reason
    return ""


def _permission_events() -> None:
    group = fanotify.init(_CLASS | _UNLIMITED, _EVENT_FLAGS)
    try:
        with tempfile.NamedTemporaryFile() as scratch:
            fanotify.mark_path(group, fanotify.FAN_MARK_ADD, fanotify.FAN_OPEN_PERM, scratch.name)
    finally:
        os.close(group)


def _ignore_marks() -> None:
    flags = fanotify.FAN_MARK_ADD | fanotify.FAN_MARK_IGNORE | fanotify.FAN_MARK_EVICTABLE
    group = fanotify.init(_CLASS | _UNLIMITED, _EVENT_FLAGS)
    try:
        with tempfile.NamedTemporaryFile() as scratch:
            survives = flags | fanotify.FAN_MARK_IGNORED_SURV_MODIFY
            fanotify.mark_path(group, survives, fanotify.FAN_OPEN_PERM, scratch.name)
    finally:
        os.close(group)


def _system_call() -> None:
    with open("/proc/self/syscall", "rb") as file:
        file.read()
