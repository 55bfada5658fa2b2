"""The board: state of every row and the wishes of the agent, in memory shared with the worker processes.

One byte a row for its state and one for urgency; a header with pause, stop, rates and counters of each worker. Bytes are only
changed by whoever holds the exclusive flock on the inode of that row, so no lock is needed here.
"""

from __future__ import annotations

import mmap
import os
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAUSED = 0
_STOPPING = 1
_RATE = 2
_WORKERS = 3
_PACE = 4
_CONCURRENCY = 5
_DROPPING = 6
_DEMAND = 7
_MOVED = 8
_MAX_WORKERS = 52
_RANGING_WORKER = 52
_MEEK = 61
# One of each for each who counts moved bytes.
_UNDERWAY = 64
_WORKING = 128
_SYNCING = 192
_HEADER_BYTES = 256 * 8


class Board:
    """``rows`` is how many rows the catalog has. ``fd`` is a memfd that workers inherit."""

    def __init__(self, fd: int, rows: int) -> None:
        self.fd = fd
        self.rows = rows
        self._map = mmap.mmap(fd, _HEADER_BYTES + 2 * max(rows, 1))
        view = memoryview(self._map)
        self._marked = np.zeros(rows, bool)
        self._read = np.zeros(rows, bool)
        # Several threads of one process count.
        self._counting = threading.Lock()
        self._states = np.frombuffer(view[_HEADER_BYTES : _HEADER_BYTES + rows], np.uint8)
        self._words = view[:_HEADER_BYTES].cast("Q")
        self.state = view[_HEADER_BYTES : _HEADER_BYTES + rows]
        self.urgent = view[_HEADER_BYTES + rows : _HEADER_BYTES + 2 * rows]

    @classmethod
    def create(cls, rows: int) -> Board:
        """A new board: every row is LAID (0)."""
        fd = os.memfd_create("active-restore-board", os.MFD_CLOEXEC)
        os.ftruncate(fd, _HEADER_BYTES + 2 * max(rows, 1))
        return cls(fd, rows)

    def note_marked(self, rows: Sequence[int], *, marked: bool) -> None:
        """The markers of these are there, or were seen to go. Known in the process that is told alone."""
        self._marked[np.asarray(rows, np.int64)] = marked

    def maybe_marked(self) -> list[int]:
        """Rows whose marker was not seen to go, in order."""
        found: list[int] = np.flatnonzero(self._marked).tolist()
        return found

    def note_read(self, row: int) -> None:
        """A task was let read this, before it was durable. Known in the process that is told alone."""
        self._read[row] = True

    def was_read(self, row: int) -> bool:
        """See ``note_read``."""
        return bool(self._read[row])

    def rows_in(self, *states: int) -> list[int]:
        """Rows that are in one of these states."""
        found: list[int] = np.flatnonzero(np.isin(self._states, states)).tolist()
        return found

    def conclude(self, rows: Sequence[int], state: int) -> None:
        """Set the state of many rows that nobody fills any more."""
        self._states[np.asarray(rows, np.int64)] = state

    @property
    def paused(self) -> bool:
        """Whether the background rests."""
        return bool(self._words[_PAUSED])

    @paused.setter
    def paused(self, value: bool) -> None:
        self._words[_PAUSED] = int(value)

    @property
    def stopping(self) -> bool:
        """Whether workers should end after the piece at hand."""
        return bool(self._words[_STOPPING])

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._words[_STOPPING] = int(value)

    @property
    def rate_bytes_per_s(self) -> int:
        """What all workers together may move; 0 for no limit."""
        return self._words[_RATE]

    @rate_bytes_per_s.setter
    def rate_bytes_per_s(self, value: int) -> None:
        self._words[_RATE] = value

    @property
    def workers(self) -> int:
        """How many workers share the rate."""
        return self._words[_WORKERS]

    @workers.setter
    def workers(self, value: int) -> None:
        self._words[_WORKERS] = value

    @property
    def pace_bytes_per_s(self) -> int:
        """What manners allow all workers together, whatever the limit; 0 for all they can."""
        return self._words[_PACE]

    @pace_bytes_per_s.setter
    def pace_bytes_per_s(self, value: int) -> None:
        self._words[_PACE] = value

    @property
    def concurrency(self) -> int:
        """How many workers may work at a time; they take turns."""
        return min(self._words[_CONCURRENCY] or self.workers, self.workers) or 1

    @concurrency.setter
    def concurrency(self, value: int) -> None:
        self._words[_CONCURRENCY] = value

    @property
    def dropping(self) -> bool:
        """Whether what the background made durable should leave the page cache."""
        return bool(self._words[_DROPPING])

    @dropping.setter
    def dropping(self, value: bool) -> None:
        self._words[_DROPPING] = int(value)

    @property
    def meek(self) -> bool:
        """Whether workers should leave the processors to whoever else wants them."""
        return bool(self._words[_MEEK])

    @meek.setter
    def meek(self, value: bool) -> None:
        self._words[_MEEK] = int(value)

    @property
    def demand_ns(self) -> int:
        """When a task's file was restored last, or will have been: CLOCK_MONOTONIC, ns."""
        return self._words[_DEMAND]

    @demand_ns.setter
    def demand_ns(self, value: int) -> None:
        self._words[_DEMAND] = value

    @property
    def ranging_worker(self) -> int:
        """The number of who fills them, beyond those of the workers."""
        return _RANGING_WORKER

    def sharing(self) -> int:
        """Among how many the rate is dealt out now: of those who take turns, as many as may work at a time; all others."""
        taking_turns = sum(self._words[_WORKING : _WORKING + self.workers])
        others = sum(self._words[_WORKING + self.workers : _WORKING + _MAX_WORKERS + 1])
        return max(min(taking_turns, self.concurrency) + others, 1)

    def note_working(self, worker: int, *, working: bool) -> None:
        """Whether a worker has something to fill, and so a part of the rate."""
        self._words[_WORKING + _slot(worker)] = int(working)

    def add_moved(self, worker: int, size: int) -> None:
        """A worker wrote this many bytes of files that are not settled; each worker has counters of its own."""
        with self._counting:
            self._words[_MOVED + _slot(worker)] += size
            self._words[_UNDERWAY + _slot(worker)] += size

    def settled(self, worker: int, size: int) -> None:
        """So many of these count as settled now, or are given up."""
        with self._counting:
            self._words[_UNDERWAY + _slot(worker)] = max(self._words[_UNDERWAY + _slot(worker)] - size, 0)

    def begin(self, worker: int) -> None:
        """A new worker has this number: what its predecessor had in hand is not there any more."""
        self._words[_UNDERWAY + _slot(worker)] = 0
        self.note_working(worker, working=False)

    def add_syncing(self, worker: int, change: int) -> None:
        """A worker begins (1) to sync files one by one, or has come to a good end (-1); each worker has a word of its own."""
        word = _SYNCING + _slot(worker)
        self._words[word] = max(self._words[word] + change, 0)

    @property
    def syncing(self) -> bool:
        """Whether a worker syncs files one by one just now, or met a failure (or its death) when it did."""
        return any(self._words[_SYNCING : _SYNCING + _MAX_WORKERS + 1])

    def moved(self) -> int:
        """Bytes written by all workers, files in progress included."""
        return sum(self._words[_MOVED : _MOVED + _MAX_WORKERS + 1])

    def underway(self) -> int:
        """Bytes written by all workers of files that do not count as settled."""
        return sum(self._words[_UNDERWAY : _UNDERWAY + _MAX_WORKERS + 1])


def _slot(worker: int) -> int:
    return worker if worker == _RANGING_WORKER else worker % _MAX_WORKERS
