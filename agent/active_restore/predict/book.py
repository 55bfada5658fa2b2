"""The book of predictions: what was guessed, what became of it, and how much each kind may guess.

A prediction is a *hit* when a task found the file complete, *late* when a task came before it was, and *wasted* when nobody
wanted it within ``PATIENCE_S``. Kinds that are wrong more often than two times in three are allowed ever less at a time,
down to a trickle that can prove them right again; what is not allowed is left to the background.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import TYPE_CHECKING

from active_restore.restore.progress import PredictionCount

if TYPE_CHECKING:
    from collections.abc import Iterable

PATIENCE_S = 10.0
_FIRST_ALLOWANCE = 64
_MIN_ALLOWANCE = 2
_MAX_ALLOWANCE = 1024
# A wait costs more than a guess: right once in three keeps an allowance as it is.
_REWARD = 2
_FINE = 1


@dataclasses.dataclass(slots=True)
class _Kind:
    made: int = 0
    hit: int = 0
    late: int = 0
    wasted: int = 0
    dropped: int = 0
    open: int = 0
    allowance: int = _FIRST_ALLOWANCE


class Book:
    """Thread-safe. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self._open: dict[int, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def admit(self, kind: str, rows: Iterable[int], now: float) -> list[int]:
        """Which of these may be fetched; each of them is an open prediction from now on. Those known are left out."""
        admitted = []
        with self._lock:
            entry = self._kinds.setdefault(kind, _Kind())
            for row in rows:
                if row in self._open:
                    continue
                if entry.open >= entry.allowance:
                    entry.dropped += 1
                    continue
                entry.open += 1
                entry.made += 1
                self._open[row] = (kind, now)
                admitted.append(row)
        return admitted

    def expect(self, kind: str, rows: Iterable[int]) -> None:
        """These are known to be needed some time: no allowance, and nobody is impatient."""
        with self._lock:
            entry = self._kinds.setdefault(kind, _Kind())
            for row in rows:
                if row not in self._open:
                    entry.open += 1
                    entry.made += 1
                    self._open[row] = (kind, math.inf)

    def wanted(self, row: int, *, was_there: bool) -> None:
        """A task opened this file: it ``was_there``, or the task had to wait. Counts once for a prediction."""
        if row not in self._open:
            # Nearly always, and demand threads ask: no lock for it.
            return
        with self._lock:
            entry = self._close(row)
            if entry is None:
                return
            if was_there:
                entry.hit += 1
            else:
                entry.late += 1
            entry.allowance = min(entry.allowance + _REWARD, _MAX_ALLOWANCE)

    def unwanted(self, row: int) -> None:
        """Nobody opened it in all the time it was given."""
        with self._lock:
            entry = self._close(row)
            if entry is not None:
                entry.wasted += 1
                entry.allowance = max(entry.allowance - _FINE, _MIN_ALLOWANCE)

    def forget(self, row: int) -> None:
        """It could not be fetched, or nobody can tell whether it was used: no verdict."""
        with self._lock:
            self._close(row)

    def _close(self, row: int) -> _Kind | None:
        kind, _ = self._open.pop(row, ("", 0.0))
        if not kind:
            return None
        self._kinds[kind].open -= 1
        return self._kinds[kind]

    def due(self, now: float) -> list[int]:
        """Rows whose time is over: whether they were used must be found out now."""
        with self._lock:
            return [row for row, (_, since) in self._open.items() if now - since >= PATIENCE_S]

    def rows(self) -> list[int]:
        """Every open prediction."""
        with self._lock:
            return list(self._open)

    def counts(self) -> dict[str, PredictionCount]:
        """By kind, for people. ``made`` less hit, late and wasted are open, or nobody can tell."""
        with self._lock:
            return {
                name: PredictionCount(kind.made, kind.hit, kind.late, kind.wasted, kind.dropped, kind.allowance)
                for name, kind in self._kinds.items()
            }
