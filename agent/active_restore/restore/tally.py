"""Counts of what was restored, by lane, and the rate: the only place where progress is added up.

``done`` counts settled (or deleted) files alone, each once, so that progress ends at exactly everything. What is written of a
large file that a task waits for is told by ``writing`` meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from active_restore.model import Lane
from active_restore.restore.progress import LaneCount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from active_restore.restore.board import Board

_RATE_WINDOW_S = 10.0


class Amount(NamedTuple):
    """Bytes that are done and underway, see ``progress.Status``; bytes per second; seconds left where that can be told."""

    done: int
    underway: int
    rate: float
    eta_s: float | None


class Tally:
    """Thread-safe counters. Sizes are in bytes; ``rows`` is how many rows the catalog has."""

    def __init__(self, rows: int, files_total: int, bytes_total: int) -> None:
        self.files_total = files_total
        self.bytes_total = bytes_total
        self.files_done = 0
        self.bytes_done = 0
        self.faults = 0
        self._refused: set[int] = set()
        self._lanes = {lane: LaneCount() for lane in Lane}
        self._writing: dict[int, int] = {}
        self._moved = 0
        self._is_done = np.zeros(rows, np.uint8)
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def filled(self, lane: Lane, files: int, size: int, *, told: bool = False) -> None:
        """The content of these files is complete. ``told``: its bytes were counted by ``writing``."""
        with self._lock:
            if lane is Lane.DEMAND and not told:
                self._moved += size
            before = self._lanes[lane]
            self._lanes[lane] = LaneCount(before.files + files, before.bytes + size)

    def done(self, settled: Iterable[tuple[int, int]]) -> None:
        """These ``(row, size)`` need nothing any more; telling twice counts once."""
        pairs = np.array(list(settled), np.int64).reshape(-1, 2)
        with self._lock:
            new = pairs[self._is_done[pairs[:, 0]] == 0]
            self._is_done[new[:, 0]] = 1
            self.files_done += len(new)
            self.bytes_done += int(new[:, 1].sum())
            if self._writing:
                for row in new[:, 0].tolist():
                    self._writing.pop(row, None)
            if self._refused:
                self._refused.difference_update(new[:, 0].tolist())

    def writing(self, row: int, size: int) -> None:
        """So many bytes of a file that a task waits for are written by now; ``done`` or 0 ends that."""
        with self._lock:
            self._moved += max(size - self._writing.get(row, 0), 0)
            if size:
                self._writing[row] = size
            else:
                self._writing.pop(row, None)

    def fault(self) -> None:
        """A task waited."""
        with self._lock:
            self.faults += 1

    def refuse(self, row: int) -> bool:
        """A file cannot be had; ``True`` the first time."""
        with self._lock:
            known = row in self._refused
            self._refused.add(row)
            return not known

    @property
    def refused(self) -> int:
        """How many files could not be had."""
        with self._lock:
            return len(self._refused)

    def lanes(self) -> dict[str, LaneCount]:
        """By lane, for people."""
        with self._lock:
            return {lane.name.lower(): count for lane, count in self._lanes.items()}

    def amount(self, board: Board, ranged: int) -> Amount:
        """How much is there now; ``ranged`` bytes are present of files by range that are not finished."""
        with self._lock:
            done = self.bytes_done
            written = sum(self._writing.values())
            rate = self._rate(board.moved() + self._moved)
        underway = min(board.underway() + written + ranged, self.bytes_total - done)
        # Not nothing, while something is not durable yet.
        left = max(self.bytes_total - done - underway, int(done < self.bytes_total))
        return Amount(done, underway, rate, left / rate if rate > 0 and left else None)

    def _rate(self, moved: int) -> float:
        """Bytes per second over the last seconds; ``moved`` is the running total of bytes written by anybody."""
        now = time.monotonic()
        self._samples.append((now, moved))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW_S:
            self._samples.popleft()
        then, before = self._samples[0]
        return (moved - before) / (now - then) if now > then else 0.0
