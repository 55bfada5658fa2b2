"""A store that tries again: bounded, with exponentially growing pauses and jitter, for what may pass by itself."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, TypeVar

from active_restore.errors import SourceUnavailable
from active_restore.store.base import AccessDenied

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.store.base import Entry, Store

T = TypeVar("T")
ATTEMPTS = 4
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0


class RetryingStore:
    """Wraps a store. Missing objects and refused credentials are final; all else unreachable is tried again."""

    def __init__(self, store: Store, attempts: int = ATTEMPTS, pause: Callable[[float], None] = time.sleep) -> None:
        self.url = store.url
        self.remote = store.remote
        self._store = store
        self._attempts = attempts
        self._pause = pause

    def get(self, name: str, limit_bytes: int) -> memoryview:
        """See ``Store.get``."""
        return self._persist(lambda: self._store.get(name, limit_bytes))

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        """See ``Store.get_range``."""
        return self._persist(lambda: self._store.get_range(name, offset, length))

    def list(self, folder: str) -> list[Entry]:
        """See ``Store.list``."""
        return self._persist(lambda: self._store.list(folder))

    def size(self, name: str) -> int:
        """See ``Store.size``."""
        return self._persist(lambda: self._store.size(name))

    def close(self) -> None:
        """See ``Store.close``."""
        self._store.close()

    def _persist(self, request: Callable[[], T]) -> T:
        for attempt in range(self._attempts - 1):
            try:
                return request()
            except AccessDenied:
                raise
            except SourceUnavailable:
                # Full jitter: many readers that lost the same server must not come back in step.
                self._pause(random.uniform(0.5, 1.0) * min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**attempt))
        return request()
