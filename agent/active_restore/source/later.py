"""A source that may be away when a restore goes on: the guard must stand at once, content can come later.

A thread of its own opens it and tries again with growing pauses. Until it is open, whoever wants content gets
``SourceUnavailable``, which every lane takes for "wait and try again".
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

# Now, not when it is first needed: by then our own libraries may be placeholders.
import active_restore.store.found as _preloaded  # noqa: F401
from active_restore.errors import ActiveRestoreError, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from active_restore.model import Node, Problem
    from active_restore.source.base import Handover, Reader, SnapshotInfo, Source

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.5
_LAST_PAUSE_S = 15.0
# How long the first who ask wait for the first try to end: deriving a key takes half a second, a dead network much longer.
_PATIENCE_S = 10.0


class LaterSource:
    """See ``source.base.Source``; ``open_now`` is ``source.open`` for one spelling, and may raise what that raises."""

    def __init__(self, url: str, open_now: Callable[[], Source]) -> None:
        self.url = url
        self._open_now = open_now
        self._opened: Source | None = None
        self._failure: ActiveRestoreError | None = None
        self._tried = threading.Event()
        self._closing = threading.Event()
        self._opener = threading.Thread(target=self._open, name="source", daemon=True)
        self._opener.start()

    def _open(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._closing.is_set():
            try:
                self._opened = self._open_now()
            except ActiveRestoreError as error:
                # Also what would end a new restore (no repository, wrong password): the guard stands, and it may be mended.
                if self._failure is None or str(self._failure) != str(error):
                    _log.warning("the source cannot be opened yet: %s", error)
                self._failure = error
            except Exception as error:
                _log.exception("the source cannot be opened")
                self._failure = SourceUnavailable(f"{type(error).__name__}: {error}")
            self._tried.set()
            if self._opened is not None:
                return
            self._closing.wait(pause)
            pause = min(2 * pause, _LAST_PAUSE_S)

    def _now(self) -> Source:
        """The source. Raises ``SourceUnavailable``."""
        if not self._tried.wait(_PATIENCE_S):
            raise SourceUnavailable("the source has not answered yet")
        if self._opened is None:
            raise SourceUnavailable(str(self._failure), self._failure.hint if self._failure else "")
        return self._opened

    @property
    def remote(self) -> bool:
        """See ``Source.remote``: until it is open, reading may take as long as from the other end of the world."""
        return self._opened is None or self._opened.remote

    @property
    def immutable(self) -> bool:
        """See ``Source.immutable``."""
        return self._now().immutable

    def snapshots(self) -> list[SnapshotInfo]:
        """See ``Source.snapshots``."""
        return self._now().snapshots()

    def select(self, name: str) -> SnapshotInfo:
        """See ``Source.select``."""
        return self._now().select(name)

    def walk(self, snapshot: SnapshotInfo, subfolder: bytes = b"") -> Iterator[Node | Problem]:
        """See ``Source.walk``."""
        return self._now().walk(snapshot, subfolder)

    def order_key(self, content: bytes) -> int:
        """See ``Source.order_key``."""
        return self._now().order_key(content)

    def reader(self) -> Reader:
        """See ``Source.reader``."""
        return self._now().reader()

    def handover(self) -> Handover:
        """See ``Source.handover``."""
        return self._now().handover()

    def close(self) -> None:
        """See ``Source.close``. A try that is under way is not waited for."""
        self._closing.set()
        if self._opened is not None:
            self._opened.close()
