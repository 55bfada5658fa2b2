"""Limits by the hours of the day as people write them: ``20MB/s 08:00-18:00, 50MB/s``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from active_restore.config import LimitWindow
from active_restore.errors import UsageError
from active_restore.rate import parse_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

_WINDOW = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)-(24:00|(?:[01]?\d|2[0-3]):[0-5]\d)", re.ASCII)
_HINT = "write it like 20MB/s, 20MB/s 08:00-18:00, or 5MB/s 08:00-12:00 13:00-18:00, 50MB/s 22:00-06:00"
_MAX_WINDOWS = 64


class Schedule(NamedTuple):
    """``bytes_per_s`` (0: no limit) holds outside of ``windows``; the first window that fits counts."""

    bytes_per_s: int
    windows: tuple[LimitWindow, ...]


def parse_schedule(text: str) -> Schedule:
    """Rates, each with any number of windows in local time, separated by commas; one rate without a window is for the rest.

    Raises ``UsageError``.
    """
    rest: int | None = None
    windows: list[LimitWindow] = []
    for entry in text.split(","):
        words = entry.split()
        times = [word for word in words if ":" in word]
        rate = parse_rate(" ".join(words[: len(words) - len(times)]))
        if words[len(words) - len(times) :] != times:
            raise UsageError(f"limit {entry.strip()!r} is not understood", _HINT)
        windows += [_window(word, rate) for word in times]
        if not times:
            if rest is not None:
                raise UsageError("two rates have no hours", _HINT)
            rest = rate
    if len(windows) > _MAX_WINDOWS:
        raise UsageError(f"more than {_MAX_WINDOWS} hours are named")
    return Schedule(rest or 0, tuple(windows))


def is_schedule(words: Sequence[str]) -> bool:
    """Whether these words say a limit."""
    try:
        parse_schedule(" ".join(words))
    except UsageError:
        return False
    return True


def show_window(window: LimitWindow) -> str:
    """Like ``08:00-18:00``."""
    return "-".join(f"{minute // 60:02d}:{minute % 60:02d}" for minute in (window.begin_minute, window.end_minute))


def _window(word: str, rate: int) -> LimitWindow:
    match = _WINDOW.fullmatch(word)
    if match is None:
        raise UsageError(f"hours {word!r} are not understood", _HINT)
    hours, _, minutes = match[3].partition(":")
    return LimitWindow(int(match[1]) * 60 + int(match[2]), int(hours) * 60 + int(minutes), rate)
