"""The user's limits of the background, by the hours of the day in local time."""

from __future__ import annotations

import time
from typing import NamedTuple

from active_restore.config import LimitWindow  # noqa: TC001 - msgspec asks for it

_DAY_MINUTES = 24 * 60


class Limits(NamedTuple):
    """``bytes_per_s`` holds outside of all windows (0: no limit); of several windows at one moment the first counts."""

    bytes_per_s: int = 0
    windows: tuple[LimitWindow, ...] = ()

    def at(self, minute: int) -> int:
        """The limit in a minute of the day, 0 to 1439."""
        for window in self.windows:
            if _inside(window, minute):
                return window.bytes_per_s
        return self.bytes_per_s

    def now(self) -> int:
        """The limit at this moment, by the machine's own time zone and its changes."""
        local = time.localtime()
        return self.at(local.tm_hour * 60 + local.tm_min)


def _inside(window: LimitWindow, minute: int) -> bool:
    """From the first minute to before the last; over midnight where it ends before it begins, all day where both are one."""
    begin, end = window.begin_minute % _DAY_MINUTES, window.end_minute % _DAY_MINUTES
    if begin < end:
        return begin <= minute < end
    return minute >= begin or minute < end
