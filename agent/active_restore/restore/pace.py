"""How fast the background may write: pause, stop and a token bucket for the rate limit. Urgent files ignore all of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from active_restore.restore.board import Board

_LOOK_S = 0.05
_BURST_S = 0.25


class Stopped(Exception):
    """The agent ends: leave this file as it is."""


class Pace:
    """One worker's share of the limit on the board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._then = time.monotonic()
        self._tokens = 0.0

    def wait(self, row: int, size: int) -> None:
        """Return when ``size`` bytes of this row may be written. Raises ``Stopped``."""
        board = self._board
        while True:
            if board.stopping:
                raise Stopped
            if board.urgent[row]:
                return
            if board.paused:
                time.sleep(_LOOK_S)
                continue
            rate = board.rate_bytes_per_s
            if not rate or self._spend(rate / max(board.workers, 1), size):
                return
            time.sleep(_LOOK_S)

    def _spend(self, rate: float, size: int) -> bool:
        """Take tokens; a piece larger than the burst goes into debt, which the next ones wait for."""
        now = time.monotonic()
        self._tokens = min(self._tokens + (now - self._then) * rate, rate * _BURST_S)
        self._then = now
        if self._tokens <= 0:
            return False
        self._tokens -= size
        return True
