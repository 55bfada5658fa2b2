"""Wait for a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.errors import SourceUnavailable

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from active_restore.source.base import Source

_LOOK_SECONDS = 1.0


def await_reachable(source: Source, stopping: threading.Event, tell: Callable[[str], None]) -> bool:
    """Until content can be had: the guard may stand before the source does. ``False`` when ``stopping``."""
    told = ""
    while not stopping.is_set():
        try:
            source.reader().close()
            return True
        except SourceUnavailable as error:
            if str(error) != told:
                told = str(error)
                tell(f"the source cannot be reached, the background waits: {told}")
            stopping.wait(_LOOK_SECONDS)
    return False
