"""A store in a local (or mounted) directory: pread on cached descriptors, because nothing is faster."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict

from active_restore.errors import ActiveRestoreError, SourceUnavailable
from active_restore.store.base import AccessDenied, Entry, ObjectNotFound, ObjectTruncated

MAX_DESCRIPTORS = 128
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
_REFUSED = frozenset({errno.EACCES, errno.EPERM})
_UNREADABLE = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EISDIR, errno.EINVAL, errno.ELOOP})


class LocalStore:
    """Objects are the files below ``root``. At most ``MAX_DESCRIPTORS`` of them are kept open."""

    remote = False

    def __init__(self, root: str) -> None:
        self.url = root
        self._root = root
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def get(self, name: str, limit_bytes: int) -> memoryview:
        """See ``Store.get``."""
        size = self.size(name)
        if size > limit_bytes:
            raise ObjectTruncated(f"{name} is {size} bytes long, more than the {limit_bytes} it may have")
        return self.get_range(name, 0, size)

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        """See ``Store.get_range``."""
        try:
            descriptor = self._descriptors.get(name)
            data = os.pread(self._open(name) if descriptor is None else descriptor, length, offset)
            if len(data) != length:
                data = self._rest(name, data, offset, length)
        except OSError as error:
            self._forget(name)
            raise self._translated(error, name) from error
        return memoryview(data)

    def list(self, folder: str) -> list[Entry]:
        """See ``Store.list``."""
        found: list[Entry] = []
        pending = [os.path.join(self._root, folder)]
        while pending:
            try:
                with os.scandir(pending.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                        elif entry.is_file():
                            found.append(Entry(entry.name, entry.stat().st_size))
            except OSError as error:
                fault = self._translated(error, folder)
                if not isinstance(fault, ObjectNotFound):
                    raise fault from error
        return sorted(found)

    def size(self, name: str) -> int:
        """See ``Store.size``."""
        try:
            return os.stat(os.path.join(self._root, name)).st_size
        except OSError as error:
            raise self._translated(error, name) from error

    def close(self) -> None:
        """See ``Store.close``."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _open(self, name: str) -> int:
        descriptor = os.open(os.path.join(self._root, name), os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors[name] = descriptor
        if len(self._descriptors) > MAX_DESCRIPTORS:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def _forget(self, name: str) -> None:
        # A descriptor of a network mount that came back is stale for ever: the next try must open anew.
        if (descriptor := self._descriptors.pop(name, None)) is not None:
            os.close(descriptor)

    def _rest(self, name: str, data: bytes, offset: int, length: int) -> bytes:
        """Go on after a short read; it is the end of the file only when nothing more comes."""
        while len(data) < length:
            more = os.pread(self._descriptors[name], length - len(data), offset + len(data))
            if not more:
                # The descriptor may be of a file that was replaced: do not trust it the next time.
                self._forget(name)
                raise ObjectTruncated(f"{name} ends before byte {offset + length}")
            data += more
        return data

    def _translated(self, error: OSError, name: str) -> ActiveRestoreError:
        reason = error.strerror or "unknown error"
        if error.errno in _GONE:
            # A missing object in a store that is there is damage; a store that is not there may come back.
            if os.path.isdir(self._root):
                return ObjectNotFound(f"{name} does not exist in {self.url}")
            return SourceUnavailable(f"{self.url}: {reason}", "is it mounted?")
        if error.errno in _REFUSED:
            return AccessDenied(f"{self.url}: {name}: {reason}", "run as root, or check the owner of the repository")
        if error.errno in _UNREADABLE:
            return ObjectTruncated(f"{name} cannot be read: {reason}")
        return SourceUnavailable(f"{self.url}: {name}: {reason}", "check the mount below this path")
