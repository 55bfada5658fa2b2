"""The desk: where all demand lanes answer faults, and what they know together of the source that they read."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from active_restore.model import Lane
from active_restore.restore.progress import FaultServed, Notice, Refused, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from active_restore.catalog import FileRow
    from active_restore.model import Fault, Gate, Task
    from active_restore.restore.shop import Workshop
    from active_restore.source.base import Reader, Source

# Between two tries of a source that cannot be reached.
FIRST_RETRY_S = 0.25
LAST_RETRY_S = 15.0


class Answers(NamedTuple):
    """What the interceptor offers to the engine: ``release(row, gate, faults)`` and ``refuse(row, errno, faults)``.

    ``describe(fault)`` tells who waits; ``filled(descriptor)`` takes note of complete content before ``release``.
    """

    release: Callable[[int, Gate, Sequence[Fault]], None]
    refuse: Callable[[int, int, Sequence[Fault]], None]
    describe: Callable[[Fault], Task]
    filled: Callable[[int], None]


class Desk:
    """Thread-safe. Close it when no fault can come and no lane works any more."""

    def __init__(self, shop: Workshop, answers: Answers, source: Source, fault_timeout_s: float) -> None:
        self.shop = shop
        self.answers = answers
        self.source = source
        self._timeout_ns = int(fault_timeout_s * 1e9)
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._readers: list[Reader] = []
        self._unreachable_since = 0.0

    def reader(self) -> Reader:
        """The calling thread's own. Raises ``SourceUnavailable``."""
        reader: Reader | None = getattr(self._thread, "reader", None)
        if reader is None:
            reader = self._thread.reader = self.source.reader()
            with self._lock:
                self._readers.append(reader)
        return reader

    def release(self, file: FileRow, gate: Gate, faults: Sequence[Fault]) -> None:
        """These tasks go on."""
        self.answers.release(file.row, gate, faults)
        now = time.monotonic_ns()
        for fault in faults:
            self.shop.tally.fault()
            task = self.answers.describe(fault)
            lane = Lane.BACKGROUND if fault.patient else Lane.DEMAND
            self.shop.reporter.event(FaultServed(file.ref.path, task, (now - fault.since_ns) / 1e6, lane))

    def refuse(self, row: int, code: int, faults: Sequence[Fault], detail: str = "") -> None:
        """These tasks get an errno; ``detail`` where people have not been told why."""
        self.answers.refuse(row, code, faults)
        if detail:
            self.shop.reporter.event(Refused(self.shop.catalog.path(row), code, detail))

    @property
    def oldest_ns(self) -> int:
        """Who has waited for a source that is away since before this (CLOCK_MONOTONIC) has waited long enough."""
        return time.monotonic_ns() - self._timeout_ns

    def lost(self, error: Exception) -> None:
        """The source cannot be reached."""
        with self._lock:
            if self._unreachable_since:
                return
            self._unreachable_since = time.monotonic()
        self.shop.reporter.event(Notice(f"the source cannot be reached, tasks wait: {error}"))

    def found(self) -> None:
        """The source has given something."""
        if not self._unreachable_since:
            return
        with self._lock:
            was_away, self._unreachable_since = bool(self._unreachable_since), 0.0
        if was_away:
            self.shop.reporter.event(Notice("the source can be reached again"))

    @property
    def unreachable_s(self) -> float:
        """For how long tasks have been waiting for the source; 0 while it can be reached."""
        since = self._unreachable_since
        return time.monotonic() - since if since else 0.0

    def waiting(self, faults: Iterable[Fault]) -> list[Waiting]:
        """Who these are, for people; longest first."""
        now = time.monotonic_ns()
        return [
            Waiting(self.shop.catalog.path(fault.row), task, (now - fault.since_ns) / 1e6)
            for fault in sorted(faults, key=lambda fault: fault.since_ns)
            if (task := self.answers.describe(fault)).tgid
        ]

    def close(self) -> None:
        """End the readers."""
        for reader in self._readers:
            reader.close()


def errno_of(error: OSError) -> int:
    """What a task is told where its file cannot be written."""
    return error.errno if error.errno in (errno.ENOSPC, errno.EDQUOT) else errno.EIO
