"""The recorder: notes the first open of every file of a file system below a directory, and who it was.

Notification events only: nobody waits for us. A file that was noted is ignored from then on by a mark on its inode, so
each costs one event, until the kernel forgets the inode.

Not guaranteed: that a file that is opened and renamed at the same moment is noted under the right name.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from typing import TYPE_CHECKING

from active_restore.errors import CapabilityMissing, TargetError
from active_restore.linux import fanotify, fanotify_names
from active_restore.linux.handles import open_handle
from active_restore.predict.order import FILE_NAME, Order, Touch, encode
from active_restore.predict.units import Units

if TYPE_CHECKING:
    from collections.abc import Callable

_INIT = (
    fanotify_names.FAN_CLASS_NOTIF
    | fanotify_names.FAN_NONBLOCK
    | fanotify_names.FAN_REPORT_DFID_NAME
    | fanotify.FAN_CLOEXEC
    | fanotify.FAN_UNLIMITED_QUEUE
    | fanotify.FAN_UNLIMITED_MARKS
)
_READ_BYTES = 1 << 16
_SAVE_SECONDS = 30.0
_MAX_TOUCHES = 200_000
_MAX_DIRECTORIES = 1 << 16
_FRESH = FILE_NAME + b".new"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Recorder:
    """Records below ``root`` until told to stop. Raises ``CapabilityMissing`` and ``TargetError``."""

    def __init__(self, root: str) -> None:
        self._path = os.fsencode(os.path.realpath(root))
        try:
            self._root = os.open(self._path, _DIRECTORY)
        except OSError as error:
            raise TargetError(f"{root} cannot be recorded: {error.strerror}", "name a directory") from error
        self._group = self._watch(root)
        self._begun = time.time()
        self._units = Units()
        self._noted: dict[bytes, Touch] = {}
        self._saved = 0
        self._directories: dict[bytes, bytes | None] = {}

    def _watch(self, root: str) -> int:
        try:
            group = fanotify.init(_INIT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CapabilityMissing(
                f"opens cannot be watched ({error.strerror})", "run as root, on kernel 5.17 or newer"
            ) from error
        try:
            flags = fanotify.FAN_MARK_ADD | fanotify.FAN_MARK_FILESYSTEM
            fanotify.mark_path(group, flags, fanotify_names.FAN_OPEN, root)
        except OSError as error:
            os.close(group)
            raise TargetError(
                f"the file system of {root} cannot be watched ({error.strerror})", "use ext4, xfs or btrfs"
            ) from error
        return group

    def run(self, stop_fd: int, ready: Callable[[], None]) -> None:
        """Record until ``stop_fd`` can be read; the order is saved now and then, and at the end."""
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        poll.register(stop_fd, select.POLLIN)
        ready()
        due = time.monotonic() + _SAVE_SECONDS
        stopping = False
        while not stopping:
            happened = dict(poll.poll(max(due - time.monotonic(), 0.0) * 1000))
            stopping = stop_fd in happened
            self._drain()
            if stopping or time.monotonic() >= due:
                self.save()
                due = time.monotonic() + _SAVE_SECONDS

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while buffer := os.read(self._group, _READ_BYTES):
                now = time.time()
                for event in fanotify_names.parse(buffer):
                    if event.pid != os.getpid():
                        self._note(event, now)

    def _note(self, event: fanotify_names.Opened, now: float) -> None:
        """Files that are gone, or lie elsewhere on the file system, are nothing to remember."""
        directory = self._directory(event.handle)
        if directory is None or len(self._noted) >= _MAX_TOUCHES or event.name in (FILE_NAME, _FRESH):
            return
        path = directory + event.name
        if path not in self._noted:
            with contextlib.suppress(OSError):
                found = os.stat(path, dir_fd=self._root, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and found.st_size:
                    ms = max(int((now - self._begun) * 1000), 0)
                    self._noted[path] = Touch(path, self._units.of(event.pid), ms)
        with contextlib.suppress(OSError):
            fanotify_names.ignore(self._group, self._root, path)

    def _directory(self, handle: bytes) -> bytes | None:
        """Where a directory lies below the root (empty, or with a slash at its end); ``None`` where it does not."""
        if handle not in self._directories:
            if len(self._directories) >= _MAX_DIRECTORIES:
                self._directories.clear()
            self._directories[handle] = self._look_up(handle)
        return self._directories[handle]

    def _look_up(self, handle: bytes) -> bytes | None:
        try:
            fd = open_handle(self._root, handle, os.O_PATH)
        except OSError:
            return None
        try:
            path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)
        above = self._path.rstrip(b"/") + b"/"
        return (path + b"/").removeprefix(above) if (path + b"/").startswith(above) else None

    def save(self) -> None:
        """Write what was noted into the root, durably, if there is anything new. Raises ``TargetError``."""
        # Directories may have been renamed since.
        self._directories.clear()
        if len(self._noted) == self._saved:
            return
        content = encode(Order(int(self._begun), tuple(self._noted.values())))
        try:
            fd = os.open(_FRESH, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._root)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(_FRESH, FILE_NAME, src_dir_fd=self._root, dst_dir_fd=self._root)
        except OSError as error:
            raise TargetError(f"the order cannot be written: {error.strerror}", "the recorded tree must be writable") from error
        self._saved = len(self._noted)

    def close(self) -> None:
        """Watch no more."""
        os.close(self._group)
        os.close(self._root)
