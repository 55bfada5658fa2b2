"""How far to read ahead: further while a reader goes through a file, not at all while it jumps about."""

from __future__ import annotations

from active_restore.presence import PAGE_BYTES

_FIRST_PAGES = (1 << 20) // PAGE_BYTES
_MOST_PAGES = (32 << 20) // PAGE_BYTES


class Ahead:
    """Of one file. Where a fault begins between the last one and the end of what was read ahead, a reader goes on."""

    def __init__(self) -> None:
        self._last = -1
        self._frontier = -1
        self._window = 0

    def after(self, first: int, last: int) -> int:
        """The end of what to have ready now that the pages from ``first`` to ``last`` were wanted; ``last`` for nothing."""
        sequential = self._last < first <= self._frontier
        self._window = min(max(2 * self._window, _FIRST_PAGES), _MOST_PAGES) if sequential else 0
        self._last = first
        self._frontier = last + self._window
        return self._frontier
