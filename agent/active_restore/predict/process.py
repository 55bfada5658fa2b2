"""The process of the predicted lane: a worker with a thread more, which looks into files that tasks have just opened.

``LOOK`` frames come down, ``PREDICTED`` frames go up; which of those are worth their bytes is decided by the agent, whose
jobs come back as to any worker. A ``PREDICTED`` without rows is the last one.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

from active_restore.predict.closure import Closure
from active_restore.predict.siblings import Siblings
from active_restore.predict.tree import Tree
from active_restore.restore import frames, worker

if TYPE_CHECKING:
    from collections.abc import Callable

_NICE = 0


class Analyst:
    """Looks into one file after the other."""

    def __init__(self, tree: Tree, upstream: worker.Upstream) -> None:
        self.looks: queue.SimpleQueue[tuple[bytes, bool] | None] = queue.SimpleQueue()
        self._upstream = upstream
        self._found: list[tuple[str, int, int]] = []
        self._closure = Closure(tree, self._predict)
        self._siblings = Siblings(tree, self._predict)

    def _predict(self, kind: str, row: int, size: int) -> None:
        self._found.append((kind, row, size))

    def run(self) -> None:
        """Until ``None`` comes."""
        while (look := self.looks.get()) is not None:
            self._look(*look)
            if self._found:
                self._upstream.send(frames.PREDICTED, self._found)
                self._found = []
        self._upstream.send(frames.PREDICTED, [])

    def _look(self, path: bytes, waited: bool) -> None:  # noqa: FBT001 - as it stands in the frame
        try:
            self._closure.of(path)
            if waited:
                self._siblings.of(path)
        except OSError:
            # Deleted or damaged under our eyes: no guess.
            pass

    def take(self, frame: list[Any]) -> None:
        """Act on one frame."""
        if frame[0] == frames.LOOK:
            self.looks.put((frame[1], frame[2]))
        elif frame[0] == frames.STOP:
            self.looks.put(None)


def _begin(words: dict[str, Any], setup: worker.Setup, upstream: worker.Upstream) -> Callable[[list[Any]], None]:
    analyst = Analyst(Tree(setup.mount_fd, words["target"], setup.board, setup.marker_prefix), upstream)
    threading.Thread(target=worker.work, args=("ar-predict", upstream, analyst.run)).start()
    return analyst.take


if __name__ == "__main__":
    worker.serve(_NICE, _begin)
