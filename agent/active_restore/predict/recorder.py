"""The recorder: notes the first open of every file of a file system below a directory, and who it was.

Notification events only: nobody waits for us. A file that was noted is ignored from then on by a mark on its inode, so
each costs one event, until the kernel forgets the inode. Between two looks nothing of the file system is held open: it
can be unmounted.

Of large files it notes the ranges, too, see ``touched``.

Not guaranteed: that a file that is opened and renamed at the same moment is noted under the right name.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from typing import TYPE_CHECKING, Protocol

from active_restore.errors import ActiveRestoreError, CapabilityMissing, TargetError
from active_restore.linux import fanotify, fanotify_names
from active_restore.linux.handles import open_handle
from active_restore.predict import memory
from active_restore.predict.learning import Everything, Worth
from active_restore.predict.order import FILE_NAME, MAX_BYTES, Order, Touch, decode, encode
from active_restore.predict.touched import Touched
from active_restore.predict.units import Units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from active_restore.predict.units import Who

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
# A tree that goes on being touched now and then is not to be written to for ever.
_LONGEST_SAVE_SECONDS = 900.0
_MAX_TOUCHES = 200_000
_MAX_DIRECTORIES = 1 << 16
_FRESH = FILE_NAME + b".new"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Judge(Protocol):
    """Says which opens count."""

    def of(self, who: Who) -> Worth:
        """What one by this process is worth."""


class Gone(ActiveRestoreError):
    """The directory is not there any more, or another one is: its file system was unmounted."""


class Recorder:
    """Records below ``root``: by ``run`` until told to stop, or by ``drain`` whenever ``fd`` can be read, and ``save``.

    With ``remembered`` (a file in the run directory) a recorder goes on with what an earlier one recorded since the machine
    started; what was recorded before that is kept behind it for the first ``keep_s``. Raises ``CapabilityMissing`` and
    ``TargetError``.
    """

    def __init__(self, root: str, judge: Judge | None = None, remembered: Path | None = None, *, keep_s: float = 0.0) -> None:
        self._path = os.fsencode(os.path.realpath(root))
        self._judge = judge or Everything()
        self._remembered = remembered
        self._units = Units()
        self._touched = Touched()
        self._noted: dict[bytes, Touch] = {}
        self._directories: dict[bytes, bytes | None] = {}
        self._begun = memory.now()
        self._before: tuple[Touch, ...] = ()
        self._keep_s = keep_s
        self._place: tuple[int, int] | None = None
        try:
            with self._opened() as fd:
                if remembered is not None:
                    self._go_on(fd, memory.load(remembered))
        except Gone as error:
            raise TargetError(f"{root} cannot be recorded: {error.hint}", "name a directory") from error
        self._saved = len(self._noted)
        self._pause_s = _SAVE_SECONDS
        self.due = time.monotonic() + self._pause_s
        """When to ``save``, by the monotonic clock."""
        self.fd = self._watch(root)
        """The group; can be read when something was opened."""

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

    def _go_on(self, root: int, begun: memory.Beginning | None) -> None:
        """Take up what is in the tree. A damaged order is replaced in time."""
        with contextlib.suppress(OSError, ValueError):
            with open(os.open(FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root), "rb") as file:
                touches = decode(file.read(MAX_BYTES)).touches
            own = begun.own if begun is not None else 0
            self._noted = {touch.path: touch for touch in touches[:own]}
            self._before = touches[own:]
        if begun is not None:
            self._begun = begun

    def run(self, stop_fd: int, ready: Callable[[], None]) -> None:
        """Record until ``stop_fd`` can be read; the order is saved now and then, and at the end."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.register(stop_fd, select.POLLIN)
        ready()
        stopping = False
        while not stopping:
            happened = dict(poll.poll(max(self.due - time.monotonic(), 0.0) * 1000))
            stopping = stop_fd in happened
            self.drain()
            if stopping or time.monotonic() >= self.due:
                self.save()

    def drain(self) -> None:
        """Note what has been opened. Raises ``Gone``."""
        with self._opened() as root, contextlib.suppress(BlockingIOError):
            while buffer := os.read(self.fd, _READ_BYTES):
                now = time.monotonic()
                for event in fanotify_names.parse(buffer):
                    if event.pid != os.getpid():
                        self._note(root, event, now)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The root while it is needed."""
        try:
            fd = os.open(self._path, _DIRECTORY)
        except OSError as error:
            raise Gone(f"{os.fsdecode(self._path)} is not there any more", error.strerror or "") from error
        try:
            found = os.fstat(fd)
            self._place = self._place or (found.st_dev, found.st_ino)
            if self._place != (found.st_dev, found.st_ino):
                raise Gone(f"{os.fsdecode(self._path)} is another directory now", "its file system was unmounted")
            yield fd
        finally:
            os.close(fd)

    def _note(self, root: int, event: fanotify_names.Opened, now: float) -> None:
        """Files that are gone, or lie elsewhere on the file system, are nothing to remember."""
        directory = self._directory(root, event.handle)
        if directory is None or len(self._noted) >= _MAX_TOUCHES or event.name in (FILE_NAME, _FRESH):
            return
        path = directory + event.name
        is_empty = False
        if path not in self._noted:
            who = self._units.who(event.pid)
            worth = self._judge.of(who)
            if worth is Worth.IGNORED:
                return
            if worth is Worth.NOTED:
                is_empty = not self._add(root, path, who, now)
        with contextlib.suppress(OSError):
            fanotify_names.ignore(self.fd, root, path, until_modified=is_empty)

    def _add(self, root: int, path: bytes, who: Who, now: float) -> bool:
        """``False`` where there is no content to be restored yet, as in a file that is just being made."""
        with contextlib.suppress(OSError):
            found = os.stat(path, dir_fd=root, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and found.st_size:
                ms = max(int((now - self._begun.monotonic_s) * 1000), 0)
                self._noted[path] = Touch(path, who.unit, ms)
                self._touched.note(path, found.st_size)
                return True
        return False

    def _directory(self, root: int, handle: bytes) -> bytes | None:
        """Where a directory lies below the root (empty, or with a slash at its end); ``None`` where it does not."""
        if handle not in self._directories:
            if len(self._directories) >= _MAX_DIRECTORIES:
                self._directories.clear()
            self._directories[handle] = self._look_up(root, handle)
        return self._directories[handle]

    def _look_up(self, root: int, handle: bytes) -> bytes | None:
        try:
            fd = open_handle(root, handle, os.O_PATH)
        except OSError:
            return None
        try:
            path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)
        above = self._path.rstrip(b"/") + b"/"
        return (path + b"/").removeprefix(above) if (path + b"/").startswith(above) else None

    def save(self) -> None:
        """Write what was noted into the root, durably, if there is anything new. Raises ``TargetError`` and ``Gone``."""
        # Directories may have been renamed since.
        self._directories.clear()
        self.due = time.monotonic() + self._pause_s
        over = bool(self._before) and time.monotonic() - self._begun.monotonic_s >= self._keep_s
        if over:
            self._before = ()
        if not (over or self._touched or len(self._noted) > self._saved):
            return
        with self._opened() as root:
            grown = self._look_at_ranges(root)
            if not (over or grown or len(self._noted) > self._saved):
                return
            self._write(root)
        self._saved = len(self._noted)
        self._pause_s = min(2 * self._pause_s, _LONGEST_SAVE_SECONDS)

    def _look_at_ranges(self, root: int) -> bool:
        """Whether more is known of large files than before."""
        found = self._touched.look(root)
        for path, ranges in found.items():
            self._noted[path] = self._noted[path]._replace(ranges=ranges)
        return bool(found)

    def _write(self, root: int) -> None:
        behind = tuple(touch for touch in self._before if touch.path not in self._noted)
        content = encode(Order(int(self._begun.wall_s), (*self._noted.values(), *behind)))
        try:
            if self._remembered is not None:
                # First: were we killed in between, a few touches of an earlier boot would pass for this one's, none get lost.
                memory.save(self._remembered, self._begun._replace(own=len(self._noted)))
            fd = os.open(_FRESH, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(_FRESH, FILE_NAME, src_dir_fd=root, dst_dir_fd=root)
            os.fsync(root)
        except OSError as error:
            raise TargetError(f"the order cannot be written: {error.strerror}", "the recorded tree must be writable") from error

    def close(self) -> None:
        """Watch no more."""
        os.close(self.fd)
