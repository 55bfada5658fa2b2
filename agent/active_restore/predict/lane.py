"""The predicted lane of the agent: what tasks wanted goes to a process that guesses, its guesses are admitted and filled.

Tasks are let go on first; all that a demand thread does for us is to write a number into shared memory. The process is started
by the first fault: a restore that nobody disturbs has none.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from active_restore.catalog import State
from active_restore.errors import ActiveRestoreError
from active_restore.model import Lane
from active_restore.placeholder import open_inode
from active_restore.predict import carried
from active_restore.predict.book import Book
from active_restore.predict.headstart import HeadStart
from active_restore.predict.news import START_NICE, News
from active_restore.predict.tree import Tree
from active_restore.restore import frames
from active_restore.restore.background import Queue, Role, Session, WorkerProcess
from active_restore.restore.progress import Notice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from active_restore.predict.order import Stretch, Touch
    from active_restore.restore.background import Hooks
    from active_restore.restore.progress import PredictionCount
    from active_restore.restore.shop import Workshop
    from active_restore.source.base import Handover, Source

# Small: what is in hand cannot be overtaken by what is needed sooner.
_BATCH_FILES = 16
_BATCH_BYTES = 4 << 20
ORDER = "order"
# Looking up a name takes 25 us; the rest is looked up when the tree can be used already.
_MOST_BEFORE = 4096
_LOOK_SECONDS = 1.0
# A process costs a fifth of a second of a processor to start: not in the middle of faults that are served at once anyway.
_PAUSE_NS = 20_000_000
_PAUSE_S = 0.02
_LATEST_S = 1.0
_SOON_S = 1.0
# A process that dies again and again is not needed for anything that must happen.
_LIVES = 3


class PredictedLane:
    """``on_served`` is for demand threads, ``close`` when no fault can come, the rest for the agent."""

    def __init__(self, shop: Workshop, handover: Callable[[], Handover], number: int, target: str) -> None:
        self._book = Book()
        self._shop = shop
        self._handover = handover
        self._number = number
        self._target = os.fsencode(os.path.realpath(target))
        self._news = News()
        self._rows = Queue(shop, _BATCH_FILES, _BATCH_BYTES)
        self._something = threading.Event()
        self._finishing = threading.Event()
        self._watcher: threading.Thread | None = None
        self._head_start: HeadStart | None = None
        self._touches: Sequence[Touch] | None = None
        self._judges = not os.fstatvfs(shop.mount_fd).f_flag & os.ST_NOATIME
        self._begun_ns = time.time_ns()
        self._pid = 0
        self.ranges: list[tuple[int, Sequence[Stretch]]] = []
        """Files by range of the order that is followed, and which of their bytes come first; none named: all."""

    def pids(self) -> list[int]:
        """The process, where there is or was one."""
        return [self._pid] if self._pid else []

    def on_served(self, row: int, *, was_there: bool) -> None:
        """A task has opened this file and goes on. Never blocks."""
        self._book.wanted(row, was_there=was_there)
        self._news.tell(row, waited=not was_there)
        if not self._something.is_set():
            self._something.set()

    def follow(self, order: str, source: Source, inside: int = -1) -> None:
        """A recorded order (the file ``order``, or else the snapshot's own) comes before all guesses.

        ``inside`` is a directory that stands for the target while it is not revealed yet; only the beginning then.
        """
        shop = self._shop
        try:
            tree = Tree(shop.mount_fd if inside < 0 else inside, self._target, shop.board, shop.marker_prefix)
            if self._touches is None:
                self._touches = carried.find(order, tree, shop.catalog, source)
            touches, self._touches = self._touches, ()
            if inside >= 0:
                touches, self._touches = touches[:_MOST_BEFORE], touches[_MOST_BEFORE:]
            found = carried.rows(touches, tree)
        except (ActiveRestoreError, OSError) as error:
            self._touches = ()
            shop.reporter.event(Notice(f"no recorded order is followed: {error}"))
            return
        rows = [row for row in found if shop.board.state[row] != State.RANGED]
        self.ranges += [(row, found[row]) for row in found if shop.board.state[row] == State.RANGED]
        if rows:
            self._book.expect(ORDER, rows)
            self._rows.append(rows)

    def give_head_start(self, source: Source, seconds: float, stopping: threading.Event) -> None:
        """Restore what is followed so far, for at most so long."""
        if self._rows and seconds > 0 and not self._shop.board.paused:
            # A number that is no worker's, as it counts bytes beside the process.
            self._head_start = HeadStart(self._shop, source, self._rows, self._number + 1)
            self._head_start.give(seconds, stopping)

    def start(self, hooks: Hooks) -> None:
        """Begin to guess, and to fill what is followed."""
        if self._rows:
            self._something.set()
        self._watcher = threading.Thread(target=self._watch, args=(hooks,), name="predictor")
        self._watcher.start()

    def finish(self) -> None:
        """No more guesses: what the process has in hand is settled, then it ends. Predictions that are open are judged."""
        self._news.end()
        self._finishing.set()
        self._something.set()
        if self._watcher is not None:
            self._watcher.join()
        self._judge(self._book.rows())

    def stop(self) -> None:
        """The agent ends."""
        if self._head_start is not None:
            self._head_start.join()

    def close(self) -> None:
        """Give back descriptors."""
        self._news.close()

    def counts(self) -> dict[str, PredictionCount]:
        """For people."""
        return self._book.counts()

    def _watch(self, hooks: Hooks) -> None:
        """Have a process from the first fault on, and judge predictions whose time is over."""
        self._something.wait()
        self._await_pause()
        talks: list[threading.Thread] = []
        while not self._finishing.is_set():
            if len(talks) < _LIVES and not any(talk.is_alive() for talk in talks):
                talks.append(threading.Thread(target=self._talk, args=(hooks,), name="predicted"))
                talks[-1].start()
            self._judge(self._book.due(time.monotonic()))
            self._finishing.wait(_LOOK_SECONDS)
        for talk in talks:
            talk.join()

    def _await_pause(self) -> None:
        """Until no task has waited for a moment, but not for long."""
        latest = time.monotonic() + _LATEST_S
        while time.monotonic_ns() - self._shop.board.demand_ns < _PAUSE_NS and time.monotonic() < latest:
            if self._finishing.wait(_PAUSE_S):
                return

    def _talk(self, hooks: Hooks) -> None:
        """One process, from its beginning to its end."""
        words = {
            "target": self._target,
            "catalog": os.fsencode(self._shop.catalog.file_path),
            "ring": self._news.ring,
            "bell": self._news.bell,
            "mannered": False,
        }
        role = Role("active_restore.predict.process", words, (self._news.ring, self._news.bell))
        process = WorkerProcess(self._number, self._shop, self._handover(), role)
        self._pid = process.pid
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + START_NICE)
        _Session(process, self._shop, hooks, self._rows, self._book, self._news).run()

    def _judge(self, rows: Iterable[int]) -> None:
        """Whether files that were fetched have been used since: the kernel has noted the time of access."""
        for row in rows:
            file = self._shop.catalog.file(row)
            filled = self._shop.board.state[row] in (State.FILLED, State.SETTLED)
            inode = open_inode(self._shop.mount_fd, file.handle) if file and filled and self._judges else None
            if inode is None:
                self._book.forget(row)
                continue
            try:
                used = os.fstat(inode).st_atime_ns >= self._begun_ns
            finally:
                os.close(inode)
            if used:
                self._book.wanted(row, was_there=True)
            else:
                self._book.unwanted(row)


class _Session(Session):
    """The conversation with the process."""

    def __init__(self, process: WorkerProcess, shop: Workshop, hooks: Hooks, rows: Queue, book: Book, news: News) -> None:
        self._rows = rows
        super().__init__(process, shop, hooks, self._rows, Lane.PREDICTED)
        self._book = book
        self._news = news
        self._ending = False

    def run(self) -> None:
        """Until the process has nothing in hand and has said its last, or dies."""
        try:
            self.feed()
            while not (self._ending and not self.busy):
                if not self.hear():
                    self._shop.reporter.event(Notice("the process that predicts died"))
                    return
                if not self._ending:
                    self.feed()
            self.finish()
        finally:
            self.end()

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

    def _filled(self, number: int, filled: list[int], others: list[list[Any]]) -> None:
        super()._filled(number, filled, others)
        skipped = [row for row, result, _, _ in others if result == frames.SKIPPED]
        for row in (*filled, *skipped):
            # What it needs comes next.
            self._news.tell(row, waited=False)
        for row, result, _, _ in others:
            if result != frames.SKIPPED:
                self._book.forget(row)

    def _trouble(self, row: int, code: int, detail: str) -> None:
        """The background will meet the same, and tell."""
