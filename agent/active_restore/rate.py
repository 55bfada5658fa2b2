"""Rates and sizes as people write them."""

from __future__ import annotations

import re

from active_restore.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?(b)?(?:/s)?", re.IGNORECASE | re.ASCII)
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


def parse_size(text: str) -> int:
    """Bytes of ``16MiB``, ``50MB``, ``1000``. Raises ``UsageError``."""
    match = _RATE.fullmatch(text.strip())
    if match is None or "/" in text or not 1 <= float(match[1]) * _UNITS[(match[2] or "").lower()] <= _MAX_RATE:
        raise UsageError(f"size {text!r} is not understood", "write it like 16MiB, 50MB or 1000000")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])
