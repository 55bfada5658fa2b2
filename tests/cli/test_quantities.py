"""Numbers that people read must not claim more than is so."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from active_restore.cli.quantities import count, duration, percent, size, waited
from active_restore.errors import UsageError
from active_restore.rate import parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50MB/s", 50_000_000),
        ("20MiB/s", 20 << 20),
        ("1.5GiB/s", 3 << 29),
        ("800k", 800_000),
        ("7 mb/s", 7_000_000),
        ("1000", 1000),
        ("1000B/s", 1000),
        ("0", 0),
        ("off", 0),
        ("0MB/s", 0),
        ("2T", 2 * 10**12),
    ],
)
def test_rate(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "fast", "-1", "1e9", "50 MB/h", "MB/s", "0.1", "inf", "9" * 30 + "T", "1.2.3", "\u0661MB"]
)
def test_bad_rate(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rate(text)
    assert "50MB/s" in caught.value.hint


@given(st.integers(0, 1 << 70), st.integers(0, 1 << 70))
@example(999_999, 1_000_000)
@example((1 << 62) - 1, 1 << 62)
def test_percent_is_100_only_at_the_end(done: int, total: int) -> None:
    text = percent(done, total)
    assert (text == "100%") == (done >= total)
    assert float(text.rstrip("%")) * max(total, 1) <= 100.0001 * max(done, total, 1)


@given(st.floats(0, 1e9))
def test_a_wait_never_reads_zero(seconds: float) -> None:
    assert (duration(seconds) == "0 s") == (seconds == 0)


@given(st.integers(0, 1 << 62))
def test_size_never_rounds_up(bytes_: int) -> None:
    number, unit = size(bytes_).split()
    scale = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB", "PiB").index(unit)
    assert Fraction(number) * scale <= bytes_
    assert (bytes_ == 0) == (Fraction(number) == 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59.5, "1 min 00 s"), (61, "1 min 01 s"), (3599.1, "1 h 00 min"), (7260, "2 h 01 min"), (-5, "0 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_words() -> None:
    assert [waited(ms) for ms in (0.31, 12.4, 4100, 125_000)] == ["0.3 ms", "12 ms", "4.1 s", "2 min 05 s"]
    assert [count(number, "file") for number in (0, 1, 12_000)] == ["0 files", "1 file", "12,000 files"]
    assert size(1536) == "1.50 KiB"
