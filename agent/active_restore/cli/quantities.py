"""Numbers for people, written without lying: nothing is "done" or "0 left" while something is left."""

from __future__ import annotations

import math

_NAMES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


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
