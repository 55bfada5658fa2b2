"""A recorded order of accesses: which files were opened first since a start, by whom, as a small file that a backup carries.

Format 1, msgpack: ``[1, begun (seconds since the epoch), units, directories, [[directory, name, unit, ms], ...]]``; a unit
and a directory are given by their position, ``ms`` is the time of the first open since the beginning. Paths are relative
to the directory that holds the file. Format 2 is written where ranges of files are known: ``[directory, name, unit, ms,
[[offset, length], ...]]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

# Not with the prefix of staging directories, which no backup of a half-restored tree holds.
FILE_NAME = b".active_restore_order"
MAX_BYTES = 64 << 20
_WHOLE, _RANGES = 1, 2
Stretch = tuple[int, int]
"""Offset and length in bytes."""
_Head = tuple[int, msgspec.Raw, msgspec.Raw, msgspec.Raw, msgspec.Raw]
_TYPES: dict[int, Any] = {
    _WHOLE: tuple[int, int, list[str], list[bytes], list[tuple[int, bytes, int, int]]],
    _RANGES: tuple[int, int, list[str], list[bytes], list[tuple[int, bytes, int, int, tuple[Stretch, ...]]]],
}


class Touch(NamedTuple):
    """The first open of a file: ``path`` without leading slash, ``unit`` (empty: not known), ``ms`` since the beginning.

    ``ranges`` of a large file were touched first, in this order; empty where that is not known.
    """

    path: bytes
    unit: str
    ms: int
    ranges: tuple[Stretch, ...] = ()


class Order(NamedTuple):
    """What was recorded. ``begun_s`` is in seconds since the epoch."""

    begun_s: int
    touches: tuple[Touch, ...]


def encode(order: Order) -> bytes:
    """The content of the file."""
    units: dict[str, int] = {}
    directories: dict[bytes, int] = {}
    packed: list[tuple[object, ...]] = []
    version = _RANGES if any(touch.ranges for touch in order.touches) else _WHOLE
    for touch in order.touches:
        directory, _, name = touch.path.rpartition(b"/")
        at = directories.setdefault(directory, len(directories))
        entry = (at, name, units.setdefault(touch.unit, len(units)), touch.ms)
        packed.append((*entry, touch.ranges) if version == _RANGES else entry)
    return msgspec.msgpack.encode((version, order.begun_s, list(units), list(directories), packed))


def decode(data: bytes) -> Order:
    """Raises ``ValueError`` with one line that says what is wrong."""
    try:
        version = msgspec.msgpack.decode(data, type=_Head)[0]
        if version not in _TYPES:
            raise ValueError(f"format {version} is not known")
        _, begun_s, units, directories, packed = msgspec.msgpack.decode(data, type=_TYPES[version])
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"this is no recorded order ({error})") from None
    touches = []
    for at, name, unit, ms, *ranges in packed:
        if not (0 <= at < len(directories) and 0 <= unit < len(units)):
            raise ValueError("this recorded order is damaged")
        path = directories[at] + b"/" + name if directories[at] else name
        if b"\0" not in path:
            touches.append(Touch(path, units[unit], ms, *ranges))
    return Order(begun_s, tuple(touches))
