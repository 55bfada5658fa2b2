"""Which files of a directory have changed since some moment, told by the kernel and not by looking at all of them.

Events name a directory by its handle and an entry in it. They are kept like that, and become paths when somebody asks: so
directories may be renamed meanwhile. A moment is a token: the session, which ends where anything may have been missed, and
a number that grows with each token.

Not guaranteed: other names of a file that has several. What is written to through mappings and by loop devices raises no
event; ``writers`` finds who may be doing that.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import TYPE_CHECKING, NamedTuple

from active_restore.errors import CapabilityMissing, ScanNeeded, TargetError
from active_restore.linux import fanotify
from active_restore.linux import fanotify_names as names
from active_restore.linux.handles import open_handle
from active_restore.relax.writers import writers

if TYPE_CHECKING:
    from collections.abc import Iterator

_INIT = (
    names.FAN_CLASS_NOTIF
    | names.FAN_NONBLOCK
    | names.FAN_REPORT_DFID_NAME
    | names.FAN_REPORT_FID
    | fanotify.FAN_CLOEXEC
    | fanotify.FAN_UNLIMITED_QUEUE
)
_CONTENT = names.FAN_MODIFY | names.FAN_CLOSE_WRITE | names.FAN_ATTRIB
_ENTRIES = names.FAN_CREATE | names.FAN_DELETE | names.FAN_MOVED_FROM | names.FAN_MOVED_TO
_MOVED_DIRECTORY = names.FAN_MOVED_TO | names.FAN_ONDIR
_READ_BYTES = 1 << 18
_MOST = 500_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Found(NamedTuple):
    """``paths`` are relative to the directory, sorted; what is not there any more was deleted or renamed.

    ``linked`` counts those among them that have other names, too.
    """

    paths: list[bytes]
    linked: int


class Changes:
    """What changes on the file system of ``directory``, from now on. ``drain`` when ``fd`` can be read.

    Raises ``CapabilityMissing`` and ``TargetError``.
    """

    def __init__(self, directory: str) -> None:
        self.path = os.fsencode(os.path.realpath(directory))
        """The real one."""
        self._session = secrets.token_hex(8)
        self._number = 1
        self._lost = False
        self._entries: dict[tuple[bytes, bytes], int] = {}
        self._moved: dict[tuple[bytes, bytes], int] = {}
        self._nameless: dict[bytes, int] = {}
        try:
            self.fd = fanotify.init(_INIT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CapabilityMissing(f"changes cannot be watched ({error.strerror})", "run as root, on 5.17 or newer") from error
        try:
            self._device = os.stat(self.path).st_dev
            flags = fanotify.FAN_MARK_ADD | fanotify.FAN_MARK_FILESYSTEM
            fanotify.mark_path(self.fd, flags, _CONTENT | _ENTRIES | names.FAN_ONDIR, directory)
        except OSError as error:
            os.close(self.fd)
            raise TargetError(
                f"the file system of {directory} cannot be watched ({error.strerror})", "use ext4, xfs or btrfs"
            ) from error

    def drain(self) -> None:
        """Take what the kernel has for us."""
        with contextlib.suppress(BlockingIOError):
            while buffer := os.read(self.fd, _READ_BYTES):
                for mask, handle, name in names.parse_changes(buffer):
                    if name:
                        self._entries[handle, name] = self._number
                        if mask & _MOVED_DIRECTORY == _MOVED_DIRECTORY:
                            self._moved[handle, name] = self._number
                    elif handle:
                        self._nameless[handle] = self._number
                    else:
                        self._lose()
                if len(self._entries) + len(self._nameless) > _MOST:
                    self._lose()

    def _lose(self) -> None:
        """More than we can hold, or the kernel could: every token is worthless from now on."""
        self._lost = True
        self._session = secrets.token_hex(8)
        self._entries.clear()
        self._moved.clear()
        self._nameless.clear()

    def token(self) -> str:
        """This moment."""
        self.drain()
        token = f"{self._session}-{self._number}"
        self._number += 1
        return token

    def since(self, token: str, directory: bytes) -> Found:
        """What has changed since then (empty: since we began) in a directory that we know, and what may be changing now.

        Raises ``ScanNeeded``.
        """
        self.drain()
        number = self._number_of(token)
        try:
            root = os.open(self.path, _DIRECTORY)
        except OSError as error:
            raise ScanNeeded(f"{os.fsdecode(self.path)} is not there: {error.strerror}") from error
        try:
            paths = set(self._named(root, number))
            paths.update(self._by_handle(root, number))
            paths.update(writers(self.path))
            paths = set(_inside(paths, os.path.relpath(directory, self.path)))
        finally:
            os.close(root)
        return Found(sorted(paths), sum(1 for path in paths if _has_names(directory, path)))

    def knows(self, directory: bytes) -> bool:
        """Whether this (a real path) is the directory or below it, on the same file system."""
        return directory == self.path or (
            directory.startswith(self.path.rstrip(b"/") + b"/") and os.stat(directory).st_dev == self._device
        )

    def _number_of(self, token: str) -> int:
        if not token and not self._lost:
            return 0
        session, _, number = token.rpartition("-")
        if session != self._session or not number.isascii() or not number.isdigit() or int(number) >= self._number:
            raise ScanNeeded(
                "it is not known what has changed since then: it was before relax mode (or the machine) was started, the file "
                "system mounted, or too much changed at once",
                "look at everything once, with a new token (active-restore changed DIR --token) from before that",
            )
        return int(number)

    def _named(self, root: int, number: int) -> Iterator[bytes]:
        """Paths of entries, and all that is below directories that were moved to where they are."""
        places: dict[bytes, bytes | None] = {}
        for (handle, name), last in self._entries.items():
            if last <= number:
                continue
            if handle not in places:
                places[handle] = self._place(root, handle)
            place = places[handle]
            if place is None:
                continue
            path = place + name if name != b"." else place.rstrip(b"/") or b"."
            yield path
            if self._moved.get((handle, name), 0) > number:
                yield from _below(root, path)

    def _by_handle(self, root: int, number: int) -> Iterator[bytes]:
        for handle, last in self._nameless.items():
            if last <= number:
                continue
            try:
                fd = open_handle(root, handle, os.O_PATH)
            except OSError:
                continue
            try:
                path = self._of_fd(fd)
                found = os.fstat(fd)
                if path is not None and _is(root, path, found):
                    yield path
                elif found.st_nlink and not self._is_elsewhere(fd, found):
                    raise ScanNeeded("a file was changed by somebody who did not come by its name", "look at everything once")
            finally:
                os.close(fd)

    def _place(self, root: int, handle: bytes) -> bytes | None:
        """Where a directory lies: empty, or with a slash at its end; ``None`` where it is gone or elsewhere."""
        try:
            fd = open_handle(root, handle, os.O_PATH)
        except OSError:
            return None
        try:
            path = self._of_fd(fd)
        finally:
            os.close(fd)
        return None if path is None else b"" if path == b"." else path + b"/"

    def _of_fd(self, fd: int) -> bytes | None:
        """Relative to the directory, ``.`` for itself; ``None`` where it is not below it, or deleted."""
        path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        if path == self.path:
            return b"."
        above = self.path.rstrip(b"/") + b"/"
        return path.removeprefix(above) if path.startswith(above) else None

    def _is_elsewhere(self, fd: int, found: os.stat_result) -> bool:
        """Whether the kernel knows its name, and it is outside."""
        path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        with contextlib.suppress(OSError):
            there = os.stat(path, follow_symlinks=False)
            return (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)
        return False

    def close(self) -> None:
        """Watch no more."""
        os.close(self.fd)


def _is(root: int, path: bytes, found: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        there = os.stat(path, dir_fd=root, follow_symlinks=False)
        return (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)
    return False


def _inside(paths: set[bytes], folder: bytes) -> Iterator[bytes]:
    """Relative to a folder, those that are in it."""
    if folder == b".":
        yield from paths
    for path in paths:
        if path == folder:
            yield b"."
        elif path.startswith(folder + b"/"):
            yield path.removeprefix(folder + b"/")


def _has_names(directory: bytes, path: bytes) -> bool:
    with contextlib.suppress(OSError):
        found = os.lstat(os.path.join(directory, path))
        return found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode)
    return False


def _below(root: int, path: bytes) -> Iterator[bytes]:
    """Everything in a directory, if it is still one, on its own file system."""
    try:
        fd = os.open(path, _DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    except OSError:
        return
    os.close(fd)
    for folder, folders, files, at in os.fwalk(path, dir_fd=root):
        device = os.fstat(at).st_dev
        for name in folders + files:
            yield os.path.join(folder, name)
        folders[:] = [name for name in folders if _device(at, name) == device]


def _device(directory: int, name: bytes) -> int:
    with contextlib.suppress(OSError):
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_dev
    return -1
