"""The marker: the xattr by which anyone can tell a placeholder, without our state.

Value: msgpack of ``[format version, restore id (8 bytes), catalog row, CRC-32 of the inode's file handle]``; all markers of one
restore share a prefix. The last word tells a placeholder from a copy that a user made together with its marker.
"""

from __future__ import annotations

import zlib

import msgpack

MARKER = "trusted.active_restore"
# Holds security.capability while a file is being filled: writing clears it, and the filler may be killed.
SAVED_CAPABILITY = "trusted.active_restore_capability"
# On the target's root: how far this disk has come, see ``restore.epoch``.
EPOCH = "trusted.active_restore_epoch"
# On a file by range that a task was allowed to write to: its times are the task's from then on.
TOUCHED = "trusted.active_restore_touched"
FORMAT = 1


def marker_prefix(restore_id: str) -> bytes:
    """What every marker of this restore (16 hex digits) begins with."""
    return bytes(msgpack.packb([FORMAT, bytes.fromhex(restore_id), 0, 0]))[:-2]


def restore_of(prefix: bytes) -> str:
    """The restore whose markers begin so."""
    return prefix[-8:].hex()


def marker_value(prefix: bytes, row: int, handle: bytes = b"") -> bytes:
    """The marker of a row on the inode with this file handle."""
    return prefix + bytes(msgpack.packb(row)) + bytes(msgpack.packb(zlib.crc32(handle)))


def marker_row(prefix: bytes, value: bytes) -> int:
    """The row of a marker that begins with ``prefix``. Raises ``ValueError`` for anything else."""
    if not value.startswith(prefix):
        raise ValueError("a marker of another restore")
    words = msgpack.unpackb(b"\x92" + value[len(prefix) :])
    if not isinstance(words[0], int) or words[0] < 0:
        raise ValueError("not a row")
    return words[0]
