"""The header at the end of a pack: which blobs lie in it. Read only where no index tells.

Source: restic ``doc/design.rst``, "Pack Format".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from active_restore.errors import ContentError
from active_restore.source.restic.seal import OVERHEAD_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from active_restore.source.restic.seal import Box
    from active_restore.store.base import Store

_PLAIN = struct.Struct("<I32s")
_COMPRESSED = struct.Struct("<II32s")
_MAX_HEADER_BYTES = 16 << 20
_EAGER_BYTES = 4 + OVERHEAD_BYTES + 15 * 41


def path(name: str) -> str:
    """Where a pack lies in a repository."""
    return f"data/{name[:2]}/{name}"


def read_header(store: Store, box: Box, name: str, size: int) -> tuple[bytes, NDArray[np.uint32]]:
    """Ids (32 bytes each) and places (offset, sealed length, plain length or 0) of the blobs of a pack of ``size`` bytes.

    Raises ``ContentError`` for a damaged header, and what the store raises.
    """
    eager = min(size, _EAGER_BYTES)
    tail = store.get_range(path(name), size - eager, eager)
    length = int.from_bytes(tail[-4:], "little") if eager >= 4 else 0
    if not OVERHEAD_BYTES < length <= min(size - 4, _MAX_HEADER_BYTES):
        raise ContentError(f"pack {name[:8]} has no valid header")
    if length + 4 > eager:
        tail = store.get_range(path(name), size - 4 - length, length + 4)
    return parse_header(box.unseal(tail[-4 - length : -4]), size - 4 - length)


def parse_header(header: bytes, data_length: int) -> tuple[bytes, NDArray[np.uint32]]:
    """Ids and places from a decrypted header; the blobs must fit in ``data_length`` bytes. Raises ``ContentError``."""
    ids: list[bytes] = []
    places: list[tuple[int, int, int]] = []
    position = offset = 0
    try:
        while position < len(header):
            kind = header[position]
            if kind > 3:
                raise ContentError(f"unknown blob type {kind} in a pack header")
            if kind < 2:
                length, blob_id = _PLAIN.unpack_from(header, position + 1)
                places.append((offset, length, 0))
                position += 1 + _PLAIN.size
            else:
                length, plain_length, blob_id = _COMPRESSED.unpack_from(header, position + 1)
                places.append((offset, length, plain_length))
                position += 1 + _COMPRESSED.size
            ids.append(blob_id)
            offset += length
    except struct.error:
        raise ContentError("a pack header ends within an entry") from None
    if offset > min(data_length, 0xFFFFFFFF):
        raise ContentError("a pack header lists more than the pack holds")
    return b"".join(ids), np.array(places, np.uint32).reshape(-1, 3)
