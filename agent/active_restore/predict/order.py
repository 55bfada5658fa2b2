"""A recorded order of accesses: which files were opened first since a start, by whom, as a small file that a backup carries.

Format 1, msgpack: ``[1, begun (seconds since the epoch), units, directories, [[directory, name, unit, ms], ...]]``; a unit
and a directory are given by their position, ``ms`` is the time of the first open since the beginning. Paths are relative
to the directory that holds the file.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

# Not with the prefix of staging directories, which no backup of a half-restored tree holds.
FILE_NAME = b".active_restore_order"
MAX_BYTES = 64 << 20
_FORMAT = 1
_Packed = tuple[int, int, list[str], list[bytes], list[tuple[int, bytes, int, int]]]


class Touch(NamedTuple):
    """The first open of a file: ``path`` without leading slash, ``unit`` (empty: not known), ``ms`` since the beginning."""

    path: bytes
    unit: str
    ms: int


class Order(NamedTuple):
    """What was recorded. ``begun_s`` is in seconds since the epoch."""

    begun_s: int
    touches: tuple[Touch, ...]


def encode(order: Order) -> bytes:
    """The content of the file."""
    units: dict[str, int] = {}
    directories: dict[bytes, int] = {}
    packed = []
    for touch in order.touches:
        directory, _, name = touch.path.rpartition(b"/")
        at = directories.setdefault(directory, len(directories))
        packed.append((at, name, units.setdefault(touch.unit, len(units)), touch.ms))
    return msgspec.msgpack.encode((_FORMAT, order.begun_s, list(units), list(directories), packed))


def decode(data: bytes) -> Order:
    """Raises ``ValueError`` with one line that says what is wrong."""
    try:
        version, begun_s, units, directories, packed = msgspec.msgpack.decode(data, type=_Packed)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"this is no recorded order ({error})") from None
    if version != _FORMAT:
        raise ValueError(f"this recorded order has format {version}, not {_FORMAT}")
    touches = []
    for at, name, unit, ms in packed:
        if not (0 <= at < len(directories) and 0 <= unit < len(units)):
            raise ValueError("this recorded order is damaged")
        path = directories[at] + b"/" + name if directories[at] else name
        if b"\0" not in path:
            touches.append(Touch(path, units[unit], ms))
    return Order(begun_s, tuple(touches))
