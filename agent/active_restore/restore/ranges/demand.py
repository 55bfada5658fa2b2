"""Faults of files by range: the pages that a task wants, at once; what a reader will want next, after it went on.

What is small and near is fetched in the thread that the fault came by; all else in threads of a pool, out of its way.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from active_restore.catalog import State
from active_restore.errors import ContentError, SourceUnavailable
from active_restore.linux import accesses, tasks
from active_restore.model import Gate, Intent, Lane
from active_restore.presence import PAGE_BYTES
from active_restore.restore.desk import FIRST_RETRY_S, LAST_RETRY_S, errno_of
from active_restore.restore.patience import Patience
from active_restore.restore.ranges.file import Gone, RangeFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from active_restore.model import Fault
    from active_restore.restore.desk import Desk
    from active_restore.restore.progress import Waiting

_QUICK_PAGES = (1 << 20) // PAGE_BYTES
_THREADS = 8
_AHEAD_THREADS = 2
# From so many faults on a file is finished before others that are wanted less.
_MUCH = 16
# What is taken for granted of an access that may be a read where somebody has the file open for writing.
_UNTOLD = {Intent.ACCESS: Intent.CHANGE, Intent.RING: Intent.WRITE}


class RangeDemand:
    """``on_fault`` is called by the interceptor's threads. ``settled`` is told rows that are no placeholders any more."""

    def __init__(self, desk: Desk, settled: Callable[[Sequence[int]], None]) -> None:
        self.files: dict[int, RangeFile] = {}
        self.urgent: Callable[[int], None] = lambda _: None
        self.stop = threading.Event()
        self._desk = desk
        self._shop = desk.shop
        self.patience = Patience(self._is_missing, self._begin)
        self._settled = settled
        self._lock = threading.Lock()
        self._waiting: dict[int, Fault] = {}
        self._pool = ThreadPoolExecutor(_THREADS, "ranges")
        self._ahead = ThreadPoolExecutor(_AHEAD_THREADS, "ranges-ahead")
        self._ahead_running = 0
        self.wanted_bytes = 0
        self.hot: set[int] = set()

    def on_fault(self, fault: Fault) -> bool:
        """``False`` where this is no file by range, or a fault that needs another answer: the demand lane has it."""
        file = self.files.get(fault.row)
        if file is None or (fault.handle and fault.handle != file.file.handle) or tasks.is_ours(fault.task.tid):
            return False
        self.patience.on_fault(fault)
        return True

    def _is_missing(self, fault: Fault) -> bool:
        file = self.files[fault.row]
        first, last = file.presence.clip(*fault.range) if fault.range else (0, file.presence.pages)
        return self._shop.board.state[fault.row] == State.RANGED and not file.presence.covers(first, last)

    def _begin(self, fault: Fault) -> None:
        file = self.files[fault.row]
        self._shop.board.demand_ns = time.monotonic_ns()
        with self._lock:
            self._waiting[fault.ticket] = fault
            file.wanted += 1
            if file.wanted == _MUCH:
                self.hot.add(file.row)
        if not (self._is_quick(file, fault) and self._served(file, fault)):
            self._pool.submit(self._serve, file, fault)

    def _is_quick(self, file: RangeFile, fault: Fault) -> bool:
        if fault.range is None or fault.intent not in (Intent.READ, Intent.CHANGE, Intent.ACCESS) or self._desk.source.remote:
            return False
        first, last = file.presence.clip(*fault.range)
        return last - first <= _QUICK_PAGES and not file.is_busy(first, last)

    def _serve(self, file: RangeFile, fault: Fault) -> None:
        pause = FIRST_RETRY_S
        while not self._served(file, fault):
            self.stop.wait(pause)
            pause = min(2 * pause, LAST_RETRY_S)

    def _served(self, file: RangeFile, fault: Fault) -> bool:
        """Every fault ends in an answer, but where the agent ends: then the next one has it.

        ``False`` where the source cannot be reached, and the task may wait on.
        """
        try:
            self._answer(file, fault)
        except SourceUnavailable as error:
            if self.stop.is_set():
                return True
            self._desk.lost(error)
            if fault.since_ns >= self._desk.oldest_ns:
                return False
            self._refuse(fault, errno.EIO)
        except ContentError as error:
            self._refuse(fault, error.errno, f"{error}")
        except Gone:
            self.conclude_gone(file)
            self._release(file, fault, Gate.ALL)
        except OSError as error:
            self._refuse(fault, errno_of(error), f"cannot be written: {error.strerror}")
        except Exception as error:
            self._refuse(fault, errno.EIO, f"{type(error).__name__}: {error}")
        return True

    def _answer(self, file: RangeFile, fault: Fault) -> None:
        if file.done:
            self._release(file, fault, Gate.ALL)
            return
        if fault.intent in _UNTOLD:
            fault = fault._replace(intent=_UNTOLD[fault.intent] if file.has_writers() else Intent.READ)
        intent = fault.intent
        if fault.range is None and file.held and intent is not Intent.WHOLE:
            # The keeper lets most opens pass; those that came by another way did not tell whether they are for exec.
            intent = accesses.open_intent(fault.task.tid)
            if intent in (Intent.READ, Intent.CHANGE):
                self._release(file, fault, Gate.NONE)
                return
        if intent is Intent.TRUNCATE and fault.range is None:
            file.discard()
            self.finish(file)
            self._release(file, fault, Gate.ALL)
        elif fault.range is None or intent in (Intent.WRITE, Intent.TRUNCATE, Intent.WHOLE):
            self.urgent(file.row)
            self._fill(file, 0, file.presence.pages)
            self.finish(file)
            self._release(file, fault, Gate.ALL)
        else:
            self._answer_range(file, fault, *file.presence.clip(*fault.range))

    def _answer_range(self, file: RangeFile, fault: Fault, first: int, last: int) -> None:
        self._fill(file, first, last)
        if fault.intent is not Intent.READ:
            # Who appends writes to the end, wherever the kernel says; and the last page is seldom a whole one.
            self._fill(file, file.presence.pages - 1, file.presence.pages)
            file.touch()
        self._release(file, fault, Gate.NONE)
        if fault.intent is Intent.READ:
            self._read_ahead(file, first, last)

    def _fill(self, file: RangeFile, first: int, last: int) -> None:
        if file.presence.covers(first, last):
            return
        moved = file.fill(first, last, self._desk.reader())
        self._shop.tally.filled(Lane.DEMAND, 0, moved)
        with self._lock:
            self.wanted_bytes += moved
        self._desk.found()

    def _read_ahead(self, file: RangeFile, first: int, last: int) -> None:
        until = min(file.ahead.after(first, last), file.presence.pages)
        if until <= last or file.presence.covers(last, until) or self.stop.is_set():
            return
        with self._lock:
            if self._ahead_running >= _AHEAD_THREADS:
                return
            self._ahead_running += 1
        self._ahead.submit(self._fill_ahead, file, last, until)

    def _fill_ahead(self, file: RangeFile, first: int, last: int) -> None:
        """Nobody waits for this: whatever goes wrong will be met again by whoever wants it."""
        try:
            with contextlib.suppress(ContentError, SourceUnavailable, OSError, Gone):
                self._fill(file, first, last)
        finally:
            with self._lock:
                self._ahead_running -= 1

    def finish(self, file: RangeFile) -> None:
        """All pages are there: no placeholder any more."""
        if file.settle():
            self._shop.tally.filled(Lane.DEMAND, 1, 0)
            self._settled([file.row])
            self._shop.tally.done([(file.row, file.file.ref.size)])

    def conclude_gone(self, file: RangeFile) -> None:
        """The user has deleted it."""
        file.done = True
        self._shop.board.state[file.row] = State.GONE
        self._shop.catalog.set_states([file.row], State.GONE)
        self._settled([file.row])
        self._shop.tally.done([(file.row, file.file.ref.size)])

    def _release(self, file: RangeFile, fault: Fault, gate: Gate) -> None:
        self._forget(fault)
        self._desk.release(file.file, gate, [fault])

    def _refuse(self, fault: Fault, code: int, detail: str = "") -> None:
        self._forget(fault)
        self._desk.refuse(fault.row, code, [fault], detail)

    def _forget(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.pop(fault.ticket, None)

    @property
    def awaited(self) -> int:
        """How many tasks wait now."""
        return len(self._waiting)

    def waiting(self) -> list[Waiting]:
        """Who waits now."""
        with self._lock:
            faults = list(self._waiting.values())
        return self._desk.waiting([*faults, *self.patience.waiting()])

    def close(self) -> None:
        """No fault comes any more, and ``stop`` is set: end the threads."""
        self._pool.shutdown()
        self._ahead.shutdown()
