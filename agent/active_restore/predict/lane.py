"""The predicted lane of the agent: what tasks wanted goes to a process that guesses, its guesses are admitted and filled.

Tasks are let go on first; all that a demand thread does for us is to put a row into a queue. The process is started by the
first fault: a restore that nobody disturbs has none.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from active_restore.catalog import State
from active_restore.model import Lane
from active_restore.placeholder import open_inode
from active_restore.predict.book import Book
from active_restore.restore import frames
from active_restore.restore.background import Queue, Session, WorkerProcess
from active_restore.restore.progress import Notice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from active_restore.restore.background import Hooks
    from active_restore.restore.demand import Workshop
    from active_restore.restore.progress import PredictionCount
    from active_restore.source.base import Handover

_MODULE = "active_restore.predict.process"
# Small: what is in hand cannot be overtaken by what is needed sooner.
_BATCH_FILES = 16
_BATCH_BYTES = 4 << 20
_LOOK_SECONDS = 1.0
_SOON_S = 1.0
# A process that dies again and again is not needed for anything that must happen.
_LIVES = 3


class _Seen(NamedTuple):
    """A task wanted a row: it ``was_there`` already, or the task waited. ``predicted``: not a task, our own lane filled it."""

    row: int
    was_there: bool
    predicted: bool = False


class PredictedLane:
    """``on_served`` is for demand threads; ``start`` and ``finish`` for the agent."""

    def __init__(self, shop: Workshop, handover: Callable[[], Handover], number: int, target: str) -> None:
        self.book = Book()
        self._shop = shop
        self._handover = handover
        self._number = number
        self._target = os.fsencode(os.path.realpath(target))
        self._seen: queue.SimpleQueue[_Seen | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._session: _Session | None = None
        self._lives = _LIVES
        self._judges = not os.fstatvfs(shop.mount_fd).f_flag & os.ST_NOATIME
        self._begun_ns = time.time_ns()

    def on_served(self, row: int, *, was_there: bool) -> None:
        """A task has opened this file and goes on. Never blocks."""
        self._seen.put(_Seen(row, was_there))

    def start(self, hooks: Hooks) -> None:
        """Begin to guess."""
        self._start("predictor", lambda: self._feed(hooks))

    def _start(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name)
        thread.start()
        self._threads.append(thread)

    def finish(self) -> None:
        """No more guesses: judge what is open and end the process. What it has in hand is settled first."""
        self._seen.put(None)
        for thread in self._threads:
            thread.join()
        self._judge(list(self.book.rows()))

    def counts(self) -> dict[str, PredictionCount]:
        """For people."""
        return self.book.counts()

    def _feed(self, hooks: Hooks) -> None:
        """Pass on what tasks wanted, and judge predictions whose time is over."""
        while True:
            try:
                seen = self._seen.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._judge(self.book.due(time.monotonic()))
                continue
            if seen is None:
                break
            if not seen.predicted:
                self.book.wanted(seen.row, was_there=seen.was_there)
            self._look(seen, hooks)
        if self._session is not None:
            self._session.send(frames.STOP)

    def _look(self, seen: _Seen, hooks: Hooks) -> None:
        session = self._session
        if session is None or session.dead:
            if self._lives <= 0 or self._shop.board.stopping:
                return
            self._lives -= 1
            session = self._session = self._begin(hooks)
        path = self._shop.catalog.path(seen.row)
        session.send(frames.LOOK, b"/" + path, not (seen.was_there or seen.predicted))

    def _begin(self, hooks: Hooks) -> _Session:
        more = {"target": self._target}
        process = WorkerProcess(self._number, self._shop, self._handover(), _MODULE, more)
        session = _Session(process, self._shop, hooks, self.book, self._seen.put)
        self._start("predicted", session.run)
        return session

    def _judge(self, rows: Iterable[int]) -> None:
        """Whether files that were fetched have been used since: the kernel has noted the time of access."""
        for row in rows:
            file = self._shop.catalog.file(row)
            filled = self._shop.board.state[row] in (State.FILLED, State.SETTLED)
            inode = open_inode(self._shop.mount_fd, file.handle) if file and filled and self._judges else None
            if inode is None:
                self.book.forget(row)
                continue
            try:
                used = os.stat(f"/proc/self/fd/{inode}").st_atime_ns >= self._begun_ns
            finally:
                os.close(inode)
            if used:
                self.book.wanted(row, was_there=True)
            else:
                self.book.unwanted(row)


class _Session(Session):
    """The conversation with the process, in a thread of its own (``run``)."""

    def __init__(self, process: WorkerProcess, shop: Workshop, hooks: Hooks, book: Book, seen: Callable[[_Seen], None]) -> None:
        self._rows = Queue(shop, _BATCH_FILES, _BATCH_BYTES)
        super().__init__(process, shop, hooks, self._rows, Lane.PREDICTED)
        self._book = book
        self._seen = seen
        self._ending = False
        self.dead = False

    def run(self) -> None:
        """Until the process has nothing in hand and has said its last, or dies."""
        try:
            while not (self._ending and not self.busy):
                if not self.hear():
                    self._shop.reporter.event(Notice("the process that predicts died"))
                    return
                if not self._ending:
                    self.feed()
        finally:
            self.dead = True
            self.end()

    def send(self, *words: object) -> None:
        """A frame down; nothing happens where the process is dead."""
        if not self.dead:
            self._worker.send(*words)

    def _other(self, kind: int, words: list[Any]) -> None:
        if kind != frames.PREDICTED:
            return
        self._ending = not words[0]
        now = time.monotonic()
        for what, row, size in words[0]:
            if self._shop.board.state[row] == State.LAID and self._in_time(size):
                self._rows.promote(self._book.admit(what, [row], now))

    def _in_time(self, size: int) -> bool:
        """Whether pause and limit let it come soon: a task that needs it is subject to neither and would overtake it."""
        board = self._shop.board
        return not board.paused and (not board.rate_bytes_per_s or size < board.rate_bytes_per_s * _SOON_S)

    def _filled(self, number: int, results: list[list[Any]]) -> None:
        super()._filled(number, results)
        for row, result, _, _ in results:
            if result in (frames.OK, frames.SKIPPED):
                # What it needs comes next.
                self._seen(_Seen(row, was_there=True, predicted=True))
            else:
                self._book.forget(row)

    def _trouble(self, row: int, code: int, detail: str) -> None:
        """The background will meet the same, and tell."""
