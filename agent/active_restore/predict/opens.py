"""Where a recorder learns of first opens: from a BPF program where this kernel takes one, else from fanotify.

Both tell of a file once, until the kernel forgets its inode, and both name an entry of a directory by the directory's handle.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Protocol

from active_restore.ebpf import capability
from active_restore.ebpf.touches import TouchWatch
from active_restore.errors import CapabilityMissing, TargetError
from active_restore.linux import fanotify, fanotify_names
from active_restore.linux.fanotify_names import Opened
from active_restore.linux.inode_numbers import InodeNumbers

if TYPE_CHECKING:
    from collections.abc import Iterator

_INIT = (
    fanotify_names.FAN_CLASS_NOTIF
    | fanotify_names.FAN_NONBLOCK
    | fanotify_names.FAN_REPORT_DFID_NAME
    | fanotify.FAN_CLOEXEC
    | fanotify.FAN_UNLIMITED_QUEUE
    | fanotify.FAN_UNLIMITED_MARKS
)
_READ_BYTES = 1 << 16
_log = logging.getLogger(__name__)


class Opens(Protocol):
    """``fd`` can be polled for reading; ``name`` is for people."""

    name: str
    fd: int

    def read(self) -> Iterator[Opened]:
        """What was opened since the last time, by others."""

    def told(self, root: int, path: bytes, *, until_modified: bool = False) -> None:
        """This file (relative to a descriptor) needs no more events. ``until_modified``: not before it is written to."""

    def again(self, root: int, path: bytes) -> None:
        """The next open of this file counts as its first: this one did not."""

    def close(self) -> None:
        """Watch no more."""


def watch(root: str) -> Opens:
    """All opens on the file system of a directory. Raises ``CapabilityMissing`` and ``TargetError``."""
    if not any(capability.problems()):
        try:
            return BpfOpens(root)
        except (CapabilityMissing, LookupError, OSError) as error:
            # Nothing is lost but a little speed.
            _log.debug("opens on %s are watched by fanotify: %s", root, error)
    return FanotifyOpens(root)


class FanotifyOpens:
    """An ignore mark on each inode that was told of."""

    name = "fanotify"

    def __init__(self, root: str) -> None:
        try:
            self.fd = fanotify.init(_INIT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CapabilityMissing(
                f"opens cannot be watched ({error.strerror})", "run as root, on kernel 5.17 or newer"
            ) from error
        try:
            flags = fanotify.FAN_MARK_ADD | fanotify.FAN_MARK_FILESYSTEM
            fanotify.mark_path(self.fd, flags, fanotify_names.FAN_OPEN, root)
        except OSError as error:
            os.close(self.fd)
            raise TargetError(
                f"the file system of {root} cannot be watched ({error.strerror})", "use ext4, xfs or btrfs"
            ) from error

    def read(self) -> Iterator[Opened]:
        """As they come; our own are left out."""
        with contextlib.suppress(BlockingIOError):
            while buffer := os.read(self.fd, _READ_BYTES):
                yield from (event for event in fanotify_names.parse(buffer) if event.pid != os.getpid())

    def told(self, root: int, path: bytes, *, until_modified: bool = False) -> None:
        """Mark it."""
        with contextlib.suppress(OSError):
            fanotify_names.ignore(self.fd, root, path, until_modified=until_modified)

    def again(self, root: int, path: bytes) -> None:
        """Nothing to do: it was not marked."""

    def close(self) -> None:
        """As promised."""
        os.close(self.fd)


class BpfOpens:
    """A note in the storage of each inode that was told of. Raises ``LookupError`` where handles are not made of numbers."""

    name = "bpf"

    def __init__(self, root: str) -> None:
        self._numbers = InodeNumbers(root)
        try:
            self._watch = TouchWatch(os.stat(root).st_dev)
        except BaseException:
            self._numbers.close()
            raise
        # The file system must be free to be unmounted.
        self._numbers.close()
        self.fd = self._watch.fd

    def read(self) -> Iterator[Opened]:
        """As they come."""
        for touched in self._watch.read():
            yield Opened(touched.pid, self._numbers.handle(touched.directory, touched.generation), touched.name)

    def told(self, root: int, path: bytes, *, until_modified: bool = False) -> None:
        """The program has noted that itself; what is to be looked at again is told of at the next open, written to or not."""
        if until_modified:
            self.again(root, path)

    def again(self, root: int, path: bytes) -> None:
        """Forget the note."""
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                self._watch.forget(fd)
            finally:
                os.close(fd)

    def close(self) -> None:
        """End the program."""
        self._watch.close()
