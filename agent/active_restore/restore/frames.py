"""Frames between agent and worker processes: 4 bytes of length (little endian), then one msgpack array.

``JOB id files`` / ``UNMARK rows`` / ``STOP`` go down; ``FILLED id rows others``, ``DURABLE rows`` and
``UNMARKED rows those_whose_marker_is_gone`` come up, or, as its last word, ``FAILED errno text`` where nothing can be made
durable. The process that predicts also sends ``PREDICTED [(kind, row, size), ...]``.
"""

from __future__ import annotations

import struct
from typing import IO, Any

import msgpack

SETUP, JOB, FILLED, DURABLE, UNMARK, UNMARKED, STOP, PREDICTED, FAILED = range(9)
# What became of the others in FILLED: (row, result, errno, detail).
SKIPPED, GONE, DAMAGED, UNREACHABLE, DISK = range(5)
_LENGTH = struct.Struct("<I")


def write_frame(stream: IO[bytes], *words: object) -> None:
    """Send one frame at once."""
    body = msgpack.packb(words)
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> list[Any] | None:
    """The next frame; ``None`` at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    body = stream.read(_LENGTH.unpack(head)[0])
    words = msgpack.unpackb(body)
    return words if isinstance(words, list) else None
