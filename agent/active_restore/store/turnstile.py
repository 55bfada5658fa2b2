"""At most so many requests at a time to one source, over all threads and processes of a restore.

A slot is a byte of a file, held by an open file description lock (fcntl(2), F_OFD_SETLK): whoever is killed gives it back.
Where there are two slots or more, the first is for those whom tasks wait for. With one, they may wait for one request.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from active_restore.store.base import Entry, Store

_F_OFD_SETLK, _F_OFD_SETLKW = 37, 38


class Turnstile(NamedTuple):
    """``path`` is a file that all processes of a restore reach, ``slots`` how many requests may be under way at once (0: any).

    ``first`` is the first slot that this process may use.
    """

    path: str = ""
    slots: int = 0
    first: int = 0

    def for_background(self) -> Turnstile:
        """What a worker may use."""
        return self._replace(first=1 if self.slots > 1 else 0)


class LimitedStore:
    """Wraps a store: every request passes the turnstile."""

    def __init__(self, store: Store, turnstile: Turnstile) -> None:
        self.url = store.url
        self.remote = store.remote
        self._store = store
        self._turnstile = turnstile
        self._own = threading.local()
        self._fds: list[int] = []
        self._lock = threading.Lock()

    def get(self, name: str, limit_bytes: int) -> memoryview:
        """See ``Store.get``."""
        with self._slot():
            return self._store.get(name, limit_bytes)

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        """See ``Store.get_range``."""
        with self._slot():
            return self._store.get_range(name, offset, length)

    def list(self, folder: str) -> list[Entry]:
        """See ``Store.list``."""
        with self._slot():
            return self._store.list(folder)

    def size(self, name: str) -> int:
        """See ``Store.size``."""
        with self._slot():
            return self._store.size(name)

    def close(self) -> None:
        """See ``Store.close``."""
        with self._lock:
            fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)
        self._store.close()

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Hold a slot. A request inside of a request (a size after a range that failed) passes with it."""
        if getattr(self._own, "inside", False):
            yield
            return
        fd = self._descriptor()
        slot = self._take(fd)
        self._own.inside = True
        try:
            yield
        finally:
            self._own.inside = False
            fcntl.fcntl(fd, _F_OFD_SETLK, _flock(fcntl.F_UNLCK, slot))

    def _take(self, fd: int) -> int:
        slots = list(range(self._turnstile.first, self._turnstile.slots))
        for slot in slots:
            try:
                fcntl.fcntl(fd, _F_OFD_SETLK, _flock(fcntl.F_WRLCK, slot))
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            else:
                return slot
        slot = random.choice(slots)
        fcntl.fcntl(fd, _F_OFD_SETLKW, _flock(fcntl.F_WRLCK, slot))
        return slot

    def _descriptor(self) -> int:
        """Locks belong to open file descriptions: each thread has one of its own."""
        fd: int | None = getattr(self._own, "fd", None)
        if fd is None:
            fd = self._own.fd = os.open(self._turnstile.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with self._lock:
                self._fds.append(fd)
        return fd


def _flock(kind: int, slot: int) -> bytes:
    """``struct flock`` of one byte, absolute."""
    return struct.pack("=hh4xqqi4x", kind, os.SEEK_SET, slot, 1, 0)
