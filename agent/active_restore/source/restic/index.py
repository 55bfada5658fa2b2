"""Where each blob lies: a table sorted by blob id in shared memory, 48 bytes for each blob and a small directory.

The table lies in a memfd, so that worker processes map the same memory. Sections, in this order:
``keys`` (u64, the first 8 bytes of the id as a number), ``entries`` (4 x u32: pack, offset, sealed length, plain length
or 0 if not compressed), ``fan`` (u32, first row for each value of the leading bits of the id), ``tails`` (the other 24
bytes of the id), ``packs`` (32 bytes each).
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_ENTRY = struct.Struct("=IIII")
_ROWS_PER_SLOT = 8
_MAX_EQUAL_KEYS = 64


class Location(NamedTuple):
    """One copy of a blob: ``plain_length`` is 0 where it is not compressed."""

    pack: int
    offset: int
    length: int
    plain_length: int


class _Layout(NamedTuple):
    """Byte offsets of the sections."""

    entries: int
    fan: int
    tails: int
    packs: int
    total: int

    @classmethod
    def of(cls, blobs: int, packs: int, fan_bits: int) -> _Layout:
        entries = 8 * blobs
        fan = entries + 16 * blobs
        # One more than needed, so that the next section is aligned to 8 bytes.
        tails = fan + 4 * ((1 << fan_bits) + 2)
        start = tails + 24 * blobs
        return cls(entries, fan, tails, start, start + 32 * packs)


class BlobIndex:
    """The table. ``shape`` (blobs, packs, fan bits) and ``descriptor`` are all that another process needs."""

    def __init__(self, descriptor: int, shape: tuple[int, int, int]) -> None:
        self.descriptor = descriptor
        self.shape = shape
        blobs, _, fan_bits = shape
        layout = _Layout.of(*shape)
        if os.fstat(descriptor).st_size < layout.total:
            raise ValueError("the shared index is smaller than its shape")
        self._map = mmap.mmap(descriptor, max(layout.total, 1), prot=mmap.PROT_READ)
        self._shift = 64 - fan_bits
        self._tails = layout.tails
        self._packs = layout.packs
        self._entries = layout.entries
        view = memoryview(self._map)
        self._keys = view[: layout.entries].cast("Q")
        self._fan = view[layout.fan : layout.tails].cast("I")
        self.keys: NDArray[np.uint64] = np.frombuffer(self._keys, np.uint64)
        self.entries: NDArray[np.uint32] = np.frombuffer(view[layout.entries : layout.fan], np.uint32).reshape(-1, 4)
        self.tails: NDArray[np.uint64] = np.frombuffer(view[layout.tails : layout.packs], np.uint8).view(np.uint64)
        self.tails = self.tails.reshape(-1, 3)
        self._count = blobs

    def find(self, blob_id: bytes) -> int:
        """Row of the first copy of a blob, -1 where there is none."""
        key = int.from_bytes(blob_id[:8], "big")
        slot = key >> self._shift
        row = bisect_left(self._keys, key, self._fan[slot], self._fan[slot + 1])
        tail = blob_id[8:]
        while row < self._count and self._keys[row] == key:
            start = self._tails + 24 * row
            if self._map[start : start + 24] == tail:
                return row
            row += 1
        return -1

    def location(self, row: int) -> Location:
        """What a row says."""
        return Location._make(_ENTRY.unpack_from(self._map, self._entries + 16 * row))

    def copies(self, blob_id: bytes) -> Iterator[Location]:
        """All places where a blob lies, in the order of the table."""
        row = self.find(blob_id)
        if row < 0:
            return
        key = self._keys[row]
        while row < self._count and self._keys[row] == key:
            start = self._tails + 24 * row
            if self._map[start : start + 24] == blob_id[8:]:
                yield self.location(row)
            row += 1

    def rows(self, ids: bytes) -> NDArray[np.int64]:
        """Rows of the first copies of many blobs (``ids`` is a multiple of 32 bytes long), -1 for unknown ones."""
        wanted = np.frombuffer(ids, np.uint8).reshape(-1, 32)
        keys = np.ascontiguousarray(wanted[:, :8]).view(">u8").ravel().astype(np.uint64)
        tails = np.ascontiguousarray(wanted[:, 8:]).view(np.uint64)
        if not self._count:
            return np.full(len(keys), -1, np.int64)
        rows = np.searchsorted(self.keys, keys).astype(np.int64)
        clipped = np.minimum(rows, self._count - 1)
        same = (self.keys[clipped] == keys) & (self.tails[clipped] == tails).all(axis=1)
        rows = np.where(same, clipped, -1)
        # Two ids with the same first 8 bytes are made by an attacker or by nobody: the slow way finds them.
        for position in np.flatnonzero(~same):
            rows[position] = self.find(ids[32 * position : 32 * position + 32])
        return rows

    def plain_size(self, row: int) -> int:
        """Size of the plaintext of a blob in bytes."""
        _, _, length, plain_length = self.location(row)
        return plain_length or length - 32

    def plain_size_of_all(self, rows: NDArray[np.int64]) -> int:
        """Sum of the sizes of the plaintexts of known blobs in bytes."""
        if not len(rows):
            return 0
        sizes = self.entries[rows].astype(np.int64)
        return int(np.where(sizes[:, 3] > 0, sizes[:, 3], sizes[:, 2] - 32).sum())

    def pack_name(self, pack: int) -> str:
        """Hexadecimal name of a pack."""
        start = self._packs + 32 * pack
        return self._map[start : start + 32].hex()

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the last view of it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class IndexBuilder:
    """Collects the blobs of packs, then makes the table once."""

    def __init__(self) -> None:
        self._packs: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        self._entries: list[NDArray[np.uint32]] = []

    def __contains__(self, pack: bytes) -> bool:
        return pack in self._packs

    def add(self, pack: bytes, ids: bytes, places: NDArray[np.uint32]) -> None:
        """Add a pack that is new: ``ids`` is 32 bytes for each blob, ``places`` rows of offset, length, plain length."""
        number = self._packs.setdefault(pack, len(self._packs))
        self._ids.append(ids)
        column = np.full((len(places), 1), number, np.uint32)
        self._entries.append(np.hstack((column, places)))

    def build(self) -> BlobIndex:
        """The table. Needs about 150 bytes for each blob while it works."""
        ids = np.frombuffer(b"".join(self._ids), np.uint8).reshape(-1, 32)
        empty = np.empty((0, 4), np.uint32)
        entries = np.concatenate([empty, *self._entries])
        keys = np.ascontiguousarray(ids[:, :8]).view(">u8").ravel().astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        # Nobody has that many copies of a blob; ids made to collide would turn every look-up into a long search.
        crowded = np.flatnonzero(keys[_MAX_EQUAL_KEYS:] == keys[:-_MAX_EQUAL_KEYS]) + _MAX_EQUAL_KEYS
        order, keys = np.delete(order, crowded), np.delete(keys, crowded)
        fan_bits = max(1, (len(keys) // _ROWS_PER_SLOT).bit_length())
        starts = np.arange(1 << fan_bits, dtype=np.uint64) << np.uint64(64 - fan_bits)
        fan = np.append(np.searchsorted(keys, starts), (len(keys), len(keys))).astype(np.uint32)
        shape = (len(keys), len(self._packs), fan_bits)
        parts: list[Any] = [keys, entries[order], fan, ids[order][:, 8:], b"".join(self._packs)]
        return BlobIndex(_shared(parts, _Layout.of(*shape).total), shape)


def _shared(parts: list[Any], total: int) -> int:
    """A memfd that holds the parts one after the other."""
    descriptor = os.memfd_create("active-restore-index", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, max(total, 1))
        with mmap.mmap(descriptor, max(total, 1)) as memory:
            for part in parts:
                memory.write(part if isinstance(part, bytes) else np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
