"""How fast the background may write: pause, stop, turns, the user's limit and manners. Urgent files ignore all of it."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.restore.board import Board

_LOOK_S = 0.05
_BURST_S = 0.25
_TURN_S = 2.0
# A task that opens one missing file is about to open the next: the background keeps out of its way for so long. One piece
# in between and the files that tasks wait for are what goes on in any case.
_FRESH_NS = 3_000_000
_GIVE_WAY_S = 0.05
_GLANCE_S = 0.001
_MEEK_NICE = 19


class Stopped(Exception):
    """The agent ends: leave this file as it is."""


class Bucket:
    """A token bucket. A piece larger than the burst goes into debt, which the next ones wait for."""

    def __init__(self) -> None:
        self._then = time.monotonic()
        self._tokens = 0.0

    def ready(self, rate: float) -> bool:
        """Whether something may go now, at ``rate`` bytes per second."""
        now = time.monotonic()
        self._tokens = min(self._tokens + (now - self._then) * rate, rate * _BURST_S)
        self._then = now
        return self._tokens > 0

    def spend(self, size: int) -> None:
        """It went."""
        self._tokens -= size


class Pace:
    """One worker's share of what the board allows. One that is not ``mannered`` works for tasks that run: limit alone."""

    def __init__(self, board: Board, number: int, *, mannered: bool = True) -> None:
        self._mannered = mannered
        self._board = board
        self._number = number
        self._limit = Bucket()
        self._manners = Bucket()
        self._meek = False
        self._usual_nice = 0

    def wait(self, row: int, size: int, needless: Callable[[], bool] = lambda: False) -> None:
        """Return when ``size`` bytes of this row may be written, or need not be any more. Raises ``Stopped``."""
        board = self._board
        while not needless():
            if board.stopping:
                raise Stopped
            if self._mannered:
                self._be_nice(meek=board.meek and not board.urgent[row])
            if board.urgent[row]:
                return
            if (
                not board.paused
                and (not self._mannered or has_turn(self._number, board.workers, board.concurrency, time.monotonic()))
                and self._take(size)
            ):
                if self._mannered:
                    self._give_way(row)
                return
            time.sleep(_LOOK_S)

    def _be_nice(self, *, meek: bool) -> None:
        """Of this thread. The scheduler gives a meek one what nobody else wants, which costs nothing where nobody is."""
        if meek != self._meek:
            self._meek = meek
            thread = threading.get_native_id()
            usual = self._usual_nice = os.getpriority(os.PRIO_PROCESS, thread) if meek else self._usual_nice
            os.setpriority(os.PRIO_PROCESS, thread, _MEEK_NICE if meek else usual)

    def _give_way(self, row: int) -> None:
        """Leave processors and disk to the tasks that are being served right now."""
        board = self._board
        end = time.monotonic() + _GIVE_WAY_S
        while time.monotonic_ns() - board.demand_ns < _FRESH_NS and not (board.urgent[row] or board.stopping):
            if time.monotonic() > end:
                return
            time.sleep(_GLANCE_S)

    def _take(self, size: int) -> bool:
        board = self._board
        limit, pace, share = board.rate_bytes_per_s, board.pace_bytes_per_s, board.sharing()
        if not self._mannered:
            pace = 0
        if limit and not self._limit.ready(limit / share):
            return False
        if pace and not self._manners.ready(pace / share):
            return False
        if limit:
            self._limit.spend(size)
        if pace:
            self._manners.spend(size)
        return True


def has_turn(number: int, workers: int, concurrency: int, now_s: float) -> bool:
    """Workers take turns, or what one has in hand would wait for as long as others use the machine."""
    return concurrency >= workers or (number + int(now_s / _TURN_S)) % workers < concurrency
