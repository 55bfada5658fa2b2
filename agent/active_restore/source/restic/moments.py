"""Times as Go's ``time.Time`` writes them in JSON: RFC 3339 with up to nine digits of a second."""

from __future__ import annotations

import datetime
import functools
import re

_OFFSET = re.compile(r"(?:\.(\d{1,9})\d*)?(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?)", re.ASCII)
_CLOCK = re.compile(r"[Tt]([01]\d|2[0-3]):([0-5]\d):([0-5]\d)", re.ASCII)
_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
_DAYS_OF_YEAR_ZERO = 366


@functools.lru_cache(maxsize=1 << 14)
def _day_s(day: str) -> int:
    """Seconds from the epoch to the beginning of ``YYYY-MM-DD`` (proleptic Gregorian, the year 0 exists as in Go)."""
    if len(day) != 10 or not day.isascii():
        raise ValueError(f"not a date: {day!r}")
    if day.startswith("0000"):
        # The year 0 is a leap year like 0004; Python's calendar begins with the year 1.
        shifted = datetime.date.fromisoformat("0004" + day[4:])
        year_start = datetime.date(4, 1, 1).toordinal()
        return (shifted.toordinal() - year_start - _DAYS_OF_YEAR_ZERO + 1 - _EPOCH_DAY) * 86400
    return (datetime.date.fromisoformat(day).toordinal() - _EPOCH_DAY) * 86400


@functools.lru_cache(maxsize=1 << 14)
def _clock_s(clock: str) -> int:
    match = _CLOCK.fullmatch(clock)
    if match is None:
        raise ValueError(f"not a time of day: {clock!r}")
    return int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3])


@functools.lru_cache(maxsize=1 << 8)
def _zone_s(sign: str, hours: str, minutes: str, seconds: str) -> int:
    distance = int(hours) * 3600 + int(minutes) * 60 + int(seconds or "0")
    return -distance if sign == "-" else distance


def parse(text: str) -> int:
    """Nanoseconds since the epoch, negative before it. Raises ``ValueError``."""
    match = _OFFSET.fullmatch(text, 19)
    if match is None:
        raise ValueError(f"not a time: {text[:40]!r}")
    fraction, sign, hours, minutes, seconds = match.groups()
    total_s = _day_s(text[:10]) + _clock_s(text[10:19])
    if sign is not None:
        total_s -= _zone_s(sign, hours, minutes, seconds)
    return total_s * 1_000_000_000 + (int(fraction.ljust(9, "0")) if fraction else 0)
