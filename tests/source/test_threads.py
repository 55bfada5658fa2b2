"""A source that several threads want at once, as after a restart."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from active_restore.source.restic.index import BlobIndex
    from active_restore.source.restic.repository import ResticSource

_THREADS = 6


def test_the_index_is_loaded_once(damaged: Callable[[], tuple[Path, ResticSource]]) -> None:
    _, source = damaged()
    together = threading.Barrier(_THREADS)

    def index(_: int) -> BlobIndex:
        together.wait()
        return source.index

    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(index, range(_THREADS)))
    assert all(one is found[0] for one in found)
