"""A remote store that is found by its address where its name cannot be looked up any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from active_restore.errors import SourceUnavailable
from active_restore.store.addresses import Name, is_looked_up
from active_restore.store.base import AccessDenied
from active_restore.store.detour import Detour
from active_restore.store.remote import open_remote

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.store.addresses import AddressBook
    from active_restore.store.base import Entry, Store

T = TypeVar("T")
_PATIENCE_S = 3.0
_PORTS = {"http": 80, "https": 443}


def open_found(scheme: str, address: str, env: dict[str, str], book: AddressBook) -> Store:
    """As ``open_remote``; what ``book`` remembers of the server's name is used where nobody else knows it."""
    store = open_remote(scheme, address, env)
    parts = urlsplit(address)
    host = parts.hostname or ""
    if not is_looked_up(host):
        return store
    name = Name(host, book.of(host))
    detour = Detour(parts.port or _PORTS[parts.scheme], lambda: name.addresses)
    # Now: it reads certificates, which may be placeholders by the time that it is wanted.
    return FoundStore(store, open_remote(scheme, address, env, detour), name, detour, book)


class FoundStore:
    """``store`` goes by the name, ``other`` by the detour."""

    def __init__(self, store: Store, other: Store, name: Name, detour: Detour, book: AddressBook) -> None:
        self.url = store.url
        self.remote = store.remote
        self._store = store
        self._other = other
        self._name = name
        self._detour = detour
        self._book = book
        self._is_noted = False
        self._is_lost = False

    def get(self, name: str, limit_bytes: int) -> memoryview:
        """See ``Store.get``."""
        return self._reach(lambda store: store.get(name, limit_bytes))

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        """See ``Store.get_range``."""
        return self._reach(lambda store: store.get_range(name, offset, length))

    def list(self, folder: str) -> list[Entry]:
        """See ``Store.list``."""
        return self._reach(lambda store: store.list(folder))

    def size(self, name: str) -> int:
        """See ``Store.size``."""
        return self._reach(lambda store: store.size(name))

    def close(self) -> None:
        """See ``Store.close``."""
        self._detour.close()
        self._other.close()
        self._store.close()

    def _reach(self, request: Callable[[Store], T]) -> T:
        if self._is_lost and not self._name.is_back():
            return request(self._other)
        self._is_lost = False
        try:
            answer = request(self._store)
        except AccessDenied:
            raise
        except SourceUnavailable:
            if not self._name.addresses or self._name.look_up(_PATIENCE_S):
                raise
            self._detour.open()
            self._is_lost = True
            return request(self._other)
        self._note()
        return answer

    def _note(self) -> None:
        """Once, by who opens the source: a server that answers has been found, so its name is known as well."""
        if not self._is_noted:
            self._is_noted = True
            if self._book.path and self._name.look_up(_PATIENCE_S):
                self._book.note(self._name.host, self._name.addresses)
