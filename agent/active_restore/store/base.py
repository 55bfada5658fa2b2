"""What every store offers; the contract suite in tests/store runs against each implementation."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from active_restore.errors import ActiveRestoreError, SourceUnavailable


class ObjectNotFound(ActiveRestoreError):
    """There is no object of that name (and the store itself is there). Final: never worth a retry."""

    code = "not_found"


class ObjectTruncated(ActiveRestoreError):
    """The object is shorter than the range asked for, longer than allowed, or its medium cannot read it."""

    code = "truncated"


class AccessDenied(SourceUnavailable):
    """The store is there but refuses our credentials. Not retried by the store; a user can repair it and go on."""


class Entry(NamedTuple):
    """One object of a listing: last component of its name, and its size in bytes (-1 where the server does not tell)."""

    name: str
    size_bytes: int


class Store(Protocol):
    """Read access to named objects. ``url`` is how the user named the store, without secrets.

    Names are relative, with ``/`` between components. Every method raises ``SourceUnavailable`` where the store
    cannot be reached now, and ``AccessDenied`` where it refuses us. Remote stores may be used by several threads at once,
    others by one at a time.
    """

    url: str
    remote: bool

    def get(self, name: str, limit_bytes: int) -> memoryview:
        """The whole object. Raises ``ObjectNotFound``; ``ObjectTruncated`` where it is larger than ``limit_bytes``."""

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        """Exactly ``length`` bytes. Raises ``ObjectNotFound``; ``ObjectTruncated`` where the object ends before."""

    def list(self, folder: str) -> list[Entry]:
        """All objects below a folder at any depth, sorted by name. A folder that does not exist is empty."""

    def size(self, name: str) -> int:
        """Size of an object in bytes. Raises ``ObjectNotFound``."""

    def close(self) -> None:
        """Give back connections and descriptors."""
