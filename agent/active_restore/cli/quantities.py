"""Numbers for people, read and written without lying: nothing is "done" or "0 left" while something is left."""

from __future__ import annotations

import math
import re

from active_restore.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?(b)?(?:/s)?", re.IGNORECASE | re.ASCII)
_NAMES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MAX_RATE = 1 << 62


def parse_rate(text: str) -> int:
    """Bytes per second of ``50MB/s`` (decimal), ``20MiB/s`` (binary), ``800k``, ``1000``; 0 and ``off`` mean no limit.

    Raises ``UsageError``.
    """
    if text.strip().lower() == "off":
        return 0
    match = _RATE.fullmatch(text.strip())
    hint = "write it like 50MB/s, 20MiB/s or 0 for no limit"
    if match is None:
        raise UsageError(f"rate {text!r} is not understood", hint)
    value = float(match[1]) * _UNITS[(match[2] or "").lower()]
    if value > _MAX_RATE or 0 < value < 1:
        raise UsageError(f"rate {text!r} is out of range", hint)
    return int(value)


def size(count: float) -> str:
    """Bytes in binary units, three digits: ``812 B``, ``1.50 KiB``, ``23.4 GiB``. Rounded down: a part never looks whole."""
    whole = int(count)
    unit = min(max(whole.bit_length() - 1, 0) // 10, len(_NAMES) - 1)
    if unit == 0:
        return f"{whole} B"
    scale = 1 << (10 * unit)
    digits = 2 if whole < 10 * scale else 1 if whole < 100 * scale else 0
    shifted = whole * 10**digits // scale
    fraction = f".{shifted % 10**digits:0{digits}d}" if digits else ""
    return f"{shifted // 10**digits}{fraction} {_NAMES[unit]}"


def percent(done: int, total: int) -> str:
    """The share in tenths, rounded down: ``100%`` only when nothing is left. Nothing out of nothing is all of it."""
    tenths = 1000 if done >= total else min(done * 1000 // total, 999)
    return "100%" if tenths == 1000 else f"{tenths // 10}.{tenths % 10}%"


def duration(seconds: float) -> str:
    """``12 s``, ``3 min 05 s``, ``2 h 07 min``, rounded up: a wait that is not over never reads ``0 s``."""
    whole = math.ceil(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = math.ceil(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def waited(milliseconds: float) -> str:
    """A wait of a task: ``0.3 ms``, ``12 ms``, ``4.1 s``, then as ``duration``."""
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.1f} s"
    return duration(milliseconds / 1000)


def count(number: int, noun: str) -> str:
    """``1 file``, ``12,000 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
