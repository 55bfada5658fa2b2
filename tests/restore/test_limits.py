"""Limits by the hours of the day: what people write, and what holds when."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_restore.config import LimitWindow
from active_restore.errors import UsageError
from active_restore.restore.limits import Limits
from active_restore.schedule import parse_schedule, show_window

if TYPE_CHECKING:
    from collections.abc import Iterator

minutes = st.integers(0, 1439)
MB = 1_000_000


def minute(text: str) -> int:
    hours, _, rest = text.partition(":")
    return int(hours) * 60 + int(rest)


@pytest.mark.parametrize(
    ("text", "at", "rate"),
    [
        ("20MB/s", "03:00", 20),
        ("20MB/s 08:00-18:00", "07:59", 0),
        ("20MB/s 08:00-18:00", "08:00", 20),
        ("20MB/s 08:00-18:00", "17:59", 20),
        ("20MB/s 08:00-18:00", "18:00", 0),
        ("5MB/s 22:00-06:00", "23:59", 5),
        ("5MB/s 22:00-06:00", "00:00", 5),
        ("5MB/s 22:00-06:00", "05:59", 5),
        ("5MB/s 22:00-06:00", "06:00", 0),
        ("5MB/s 20:00-24:00", "23:59", 5),
        ("5MB/s 20:00-24:00", "00:00", 0),
        ("5MB/s 09:00-09:00", "04:00", 5),
        ("5MB/s 08:00-12:00 13:00-18:00, 50MB/s", "12:30", 50),
        ("5MB/s 08:00-12:00 13:00-18:00, 50MB/s", "13:00", 5),
        ("0 12:00-13:00, 9 MB/s 08:00-18:00, 50MB/s", "12:30", 0),
        ("0 12:00-13:00, 9 MB/s 08:00-18:00, 50MB/s", "13:30", 9),
        ("50MB/s, 9MB/s 08:00-18:00", "13:30", 9),
    ],
)
def test_what_holds_when(text: str, at: str, rate: int) -> None:
    schedule = parse_schedule(text)
    assert Limits(schedule.bytes_per_s, schedule.windows).at(minute(at)) == rate * MB


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "20MB/s,", "20MB/s 8-18", "20MB/s 08:00", "20MB/s 25:00-26:00", "20MB/s 08:60-09:00", "20MB/s 24:00-01:00"),
        *("08:00-18:00", "08:00-18:00 20MB/s", "20MB/s 08:00-18:00 x", "1MB/s, 2MB/s", "1MB/s" + " 01:00-02:00" * 65),
    ],
)
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(UsageError):
        parse_schedule(text)


@given(st.lists(st.builds(LimitWindow, minutes, st.integers(0, 1440), st.integers(1, 1 << 40)), max_size=8), minutes)
def test_one_limit_at_a_time(windows: list[LimitWindow], now: int) -> None:
    """The first window that fits, compared with a clock that runs from its beginning."""
    fits = [
        window.bytes_per_s
        for window in windows
        if (now - window.begin_minute) % 1440 < ((window.end_minute - window.begin_minute) % 1440 or 1440)
    ]
    assert Limits(7, tuple(windows)).at(now) == (fits or [7])[0]


@given(minutes, st.integers(0, 1440), st.integers(0, 10**12))
def test_what_is_shown_can_be_read(begin: int, end: int, rate: int) -> None:
    window = LimitWindow(begin, end, rate)
    assert parse_schedule(f"{rate} {show_window(window)}").windows == (window,)


@pytest.fixture
def zone() -> Iterator[None]:
    before = os.environ.get("TZ")
    yield
    os.environ.pop("TZ", None)
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def test_hours_are_local(zone: None) -> None:
    """In two zones twelve hours apart, a window of this local hour and the eleven after it fits in one of them only."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    here = time.localtime().tm_hour
    limits = Limits(0, (LimitWindow(here * 60, (here + 12) % 24 * 60, 5),))
    assert limits.now() == 5
    os.environ["TZ"] = "XYZ-12"
    time.tzset()
    assert limits.now() == 0
