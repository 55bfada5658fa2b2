"""The process of the predicted lane: a worker with a thread more, which looks into files that tasks have just opened.

It reads ``News`` and answers ``PREDICTED``; which of those are worth their bytes is decided by the agent, whose jobs come
back as to any worker. A ``PREDICTED`` without rows is the last one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

from active_restore.catalog import Catalog
from active_restore.predict.closure import Closure
from active_restore.predict.news import START_NICE, Reading
from active_restore.predict.siblings import Siblings
from active_restore.predict.tree import Tree
from active_restore.restore import frames, worker

_ANALYST_NICE = 5
# While a task opens one missing file after the other, looking takes no more than a fifth of a processor: two have enough
# to do with handing those faults on (measured: each would take a third longer).
_FRESH_NS = 5_000_000
_REST = 4.0
_LONGEST_REST_S = 0.05


class Analyst:
    """Looks into one file after the other. ``words`` are those of ``lane.PredictedLane``."""

    def __init__(self, words: dict[str, Any], tree: Tree, upstream: worker.Upstream) -> None:
        self._news = Reading(words["ring"], words["bell"])
        self._catalog = Path(os.fsdecode(words["catalog"]))
        self._upstream = upstream
        self._board = tree.board
        self._found: list[tuple[str, int, int]] = []
        self._closure = Closure(tree, self._predict)
        self._siblings = Siblings(tree, self._predict)

    def _predict(self, kind: str, row: int, size: int) -> None:
        self._found.append((kind, row, size))

    def run(self) -> None:
        """Until there are no more news. Tasks go before guesses about them."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _ANALYST_NICE)
        with contextlib.closing(Catalog(self._catalog)) as catalog:
            for batch in self._news.batches():
                paths = catalog.paths([row for row, _ in batch])
                for row, waited in batch:
                    if row in paths:
                        self._one(b"/" + paths[row], waited=waited)
        self._upstream.send(frames.PREDICTED, [])

    def _one(self, path: bytes, *, waited: bool) -> None:
        """A file that a task opened, and what it brings."""
        began = time.monotonic()
        # Deleted or damaged under our eyes: no guess.
        with contextlib.suppress(OSError):
            self._closure.of(path)
            if waited:
                self._siblings.of(path)
        if self._found:
            self._upstream.send(frames.PREDICTED, self._found)
            self._found = []
        self._rest(time.monotonic() - began)

    def _rest(self, worked_s: float) -> None:
        if time.monotonic_ns() - self._board.demand_ns < _FRESH_NS:
            time.sleep(min(_REST * worked_s, _LONGEST_REST_S))


def _begin(words: dict[str, Any], setup: worker.Setup, upstream: worker.Upstream) -> None:
    tree = Tree(setup.mount_fd, words["target"], setup.board, setup.marker_prefix)
    analyst = Analyst(words, tree, upstream)
    threading.Thread(target=worker.work, args=("ar-predict", upstream, analyst.run)).start()


if __name__ == "__main__":
    worker.serve(-START_NICE, _begin)
