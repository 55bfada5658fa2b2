"""Faults of files by range: the pages that a task wants, at once; what a reader will want next, after it went on.

What is small and near is fetched in the thread that the fault came by; all else in threads of a pool, out of its way.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.catalog import State
from active_restore.errors import ContentError, SourceUnavailable
from active_restore.linux import accesses, tasks
from active_restore.model import Gate, Intent, Lane
from active_restore.presence import PAGE_BYTES
from active_restore.restore.progress import FaultServed, Notice, Refused, Waiting
from active_restore.restore.ranges.file import Gone, RangeFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from active_restore.model import Fault
    from active_restore.restore.demand import Answers
    from active_restore.restore.shop import Workshop
    from active_restore.source.base import Reader, Source

_QUICK_PAGES = (1 << 20) // PAGE_BYTES
_THREADS = 8
_AHEAD_THREADS = 2
_FIRST_RETRY_S = 0.25
_LAST_RETRY_S = 15.0
_HUGE_PAGE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_DEFAULT_HUGE_BYTES = 2 << 20


class RangeDemand:
    """``on_fault`` is called by the interceptor's threads. ``settled`` is told rows that are no placeholders any more."""

    def __init__(
        self,
        shop: Workshop,
        answers: Answers,
        source: Source,
        fault_timeout_s: float,
        settled: Callable[[Sequence[int]], None],
    ) -> None:
        self.files: dict[int, RangeFile] = {}
        self.urgent: Callable[[int], None] = lambda _: None
        self.stop = threading.Event()
        self._shop = shop
        self._answers = answers
        self._source = source
        self._timeout_ns = int(fault_timeout_s * 1e9)
        self._settled = settled
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[int, Fault]] = {}
        self._thread = threading.local()
        self._readers: list[Reader] = []
        self._pool = ThreadPoolExecutor(_THREADS, "ranges")
        self._ahead = ThreadPoolExecutor(_AHEAD_THREADS, "ranges-ahead")
        self._ahead_running = 0
        self._unreachable_since = 0.0
        self._huge_pages = _huge_bytes() // PAGE_BYTES

    def on_fault(self, fault: Fault) -> bool:
        """``False`` where this is no file by range, or a fault that needs another answer: the demand lane has it."""
        file = self.files.get(fault.row)
        if file is None or (fault.handle and fault.handle != file.file.handle) or tasks.is_ours(fault.task.tid):
            return False
        self._shop.board.demand_ns = time.monotonic_ns()
        with self._lock:
            self._waiting[fault.ticket] = (fault.row, fault)
        if self._is_quick(file, fault):
            self._serve(file, fault)
        else:
            self._pool.submit(self._serve, file, fault)
        return True

    def _is_quick(self, file: RangeFile, fault: Fault) -> bool:
        if fault.range is None or fault.intent not in (Intent.READ, Intent.CHANGE) or self._source.remote:
            return False
        first, last = file.presence.clip(*fault.range)
        return last - first <= _QUICK_PAGES and not file.is_busy(first, last)

    def _serve(self, file: RangeFile, fault: Fault) -> None:
        """Every fault ends in an answer, but where the agent ends: then the next one has it."""
        pause = _FIRST_RETRY_S
        while True:
            try:
                self._answer(file, fault)
            except SourceUnavailable as error:
                if self.stop.is_set():
                    return
                self._note_unreachable(error)
                if time.monotonic_ns() - fault.since_ns < self._timeout_ns:
                    self.stop.wait(pause)
                    pause = min(2 * pause, _LAST_RETRY_S)
                    continue
                self._refuse(fault, errno.EIO)
            except ContentError as error:
                self._refuse(fault, error.errno, f"{error}")
            except Gone:
                self.conclude_gone(file)
                self._release(file, fault, Gate.ALL)
            except OSError as error:
                code = error.errno if error.errno in (errno.ENOSPC, errno.EDQUOT) else errno.EIO
                self._refuse(fault, code, f"cannot be written: {error.strerror}")
            except Exception as error:
                self._refuse(fault, errno.EIO, f"{type(error).__name__}: {error}")
            return

    def _answer(self, file: RangeFile, fault: Fault) -> None:
        if file.done:
            self._release(file, fault, Gate.ALL)
            return
        intent = fault.intent
        if fault.range is None and file.held:
            # The keeper lets most opens pass; those that came by another way did not tell whether they are for exec.
            intent = accesses.open_intent(fault.task.tid)
            if intent in (Intent.READ, Intent.CHANGE):
                self._release(file, fault, Gate.NONE)
                return
        if intent is Intent.TRUNCATE and fault.range is None:
            file.discard()
            self.finish(file)
            self._release(file, fault, Gate.ALL)
        elif fault.range is None or intent in (Intent.WRITE, Intent.TRUNCATE):
            self.urgent(file.row)
            self._fill(file, 0, file.presence.pages)
            self.finish(file)
            self._release(file, fault, Gate.ALL)
        else:
            self._answer_range(file, fault, *file.presence.clip(*fault.range))

    def _answer_range(self, file: RangeFile, fault: Fault, first: int, last: int) -> None:
        presence = file.presence
        if fault.intent is Intent.MAP:
            # A page that is dirtied through a mapping makes all of its (large) folio data: none may hold missing pages.
            first -= first % self._huge_pages
            last = min(last + -last % self._huge_pages, presence.pages)
        self._fill(file, first, last)
        if fault.intent is not Intent.READ:
            # Who appends writes to the end, wherever the kernel says; and the last page is seldom a whole one.
            self._fill(file, presence.pages - 1, presence.pages)
            file.touch()
        self._release(file, fault, Gate.NONE)
        if fault.intent is Intent.READ:
            self._read_ahead(file, first, last)

    def _fill(self, file: RangeFile, first: int, last: int) -> None:
        if file.presence.covers(first, last):
            return
        moved = file.fill(first, last, self._reader())
        self._shop.tally.filled(Lane.DEMAND, 0, moved)
        if self._unreachable_since:
            self._unreachable_since = 0.0
            self._shop.reporter.event(Notice("the source can be reached again"))

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
        self._answers.release(fault.row, gate, [fault])
        self._shop.tally.fault()
        waited_ms = (time.monotonic_ns() - fault.since_ns) / 1e6
        self._shop.reporter.event(FaultServed(file.file.ref.path, self._answers.describe(fault), waited_ms, Lane.DEMAND))

    def _refuse(self, fault: Fault, code: int, detail: str = "") -> None:
        self._forget(fault)
        self._answers.refuse(fault.row, code, [fault])
        if detail:
            self._shop.reporter.event(Refused(self._shop.catalog.path(fault.row), code, detail))

    def _forget(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.pop(fault.ticket, None)

    def _reader(self) -> Reader:
        reader: Reader | None = getattr(self._thread, "reader", None)
        if reader is None:
            reader = self._thread.reader = self._source.reader()
            with self._lock:
                self._readers.append(reader)
        return reader

    def _note_unreachable(self, error: SourceUnavailable) -> None:
        if not self._unreachable_since:
            self._unreachable_since = time.monotonic()
            self._shop.reporter.event(Notice(f"the source cannot be reached, tasks wait: {error}"))

    @property
    def unreachable_s(self) -> float:
        """For how long tasks have been waiting for the source; 0 while it can be reached."""
        since = self._unreachable_since
        return time.monotonic() - since if since else 0.0

    @property
    def awaited(self) -> int:
        """How many tasks wait now."""
        return len(self._waiting)

    def waiting(self) -> list[Waiting]:
        """Who waits now."""
        now = time.monotonic_ns()
        with self._lock:
            faults = list(self._waiting.values())
        return [
            Waiting(self.files[row].file.ref.path, task, (now - fault.since_ns) / 1e6)
            for row, fault in faults
            if (task := self._answers.describe(fault)).tgid
        ]

    def close(self) -> None:
        """No fault comes any more, and ``stop`` is set: end the threads and readers."""
        self._pool.shutdown()
        self._ahead.shutdown()
        for reader in self._readers:
            reader.close()


def _huge_bytes() -> int:
    """The largest folio of the page cache."""
    try:
        return int(_HUGE_PAGE.read_text())
    except (OSError, ValueError):
        return _DEFAULT_HUGE_BYTES
