"""Pieces of any length become whole pages; a page of which a part is not known is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from active_restore.presence import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from active_restore.model import Piece
    from active_restore.presence import Presence

_SLICE_PAGES = 1 << 20


class Chunk(NamedTuple):
    """Bytes to write at ``offset``, which is that of a page; whole pages, but for the end of the file."""

    offset: int
    data: bytes | memoryview


def whole_pages(pieces: Iterable[Piece], start: int, end: int, size: int) -> Iterator[Chunk]:
    """What to write of the bytes from ``start`` to ``end`` of a file of ``size`` bytes; pages full of zeros are left out.

    ``pieces`` ascend and lie in between; what they leave out is zero.
    """
    first = start + -start % PAGE_BYTES
    last = size if end >= size else end - end % PAGE_BYTES
    page, base = bytearray(), 0
    for piece in pieces:
        offset = max(piece.offset, first)
        data = memoryview(piece.data)[offset - piece.offset : max(last - piece.offset, 0)]
        if page and data:
            if offset < base + PAGE_BYTES:
                page += bytes(offset - base - len(page))
                taken = data[: PAGE_BYTES - len(page)]
                page += taken
                data, offset = data[len(taken) :], offset + len(taken)
            if len(page) == PAGE_BYTES or data:
                yield _padded(base, page, size)
                page = bytearray()
        if not data:
            continue
        lead = offset % PAGE_BYTES
        if lead:
            page, base = bytearray(lead) + data[: PAGE_BYTES - lead], offset - lead
            data, offset = data[PAGE_BYTES - lead :], base + PAGE_BYTES
            if len(page) < PAGE_BYTES:
                continue
            yield Chunk(base, bytes(page))
            page = bytearray()
        whole = len(data) - len(data) % PAGE_BYTES
        if whole:
            yield Chunk(offset, data[:whole])
        page, base = bytearray(data[whole:]), offset + whole
    if page:
        yield _padded(base, page, size)


def _padded(base: int, page: bytearray, size: int) -> Chunk:
    """A page that ends with zeros."""
    return Chunk(base, bytes(page) + bytes(min(PAGE_BYTES, size - base) - len(page)))


def missing(presence: Presence, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Stretches (first, last) of missing pages among these, ascending."""
    while first < last:
        base = first & ~7
        end = min(last, base + _SLICE_PAGES)
        raw = np.frombuffer(presence.bits[base >> 3 : (end + 7) >> 3], np.uint8)
        gone = np.unpackbits(raw, bitorder="little", count=end - base)[first - base :] == 0
        edges = np.flatnonzero(np.diff(np.concatenate(([False], gone, [False])).astype(np.int8)))
        for begin, stop in edges.reshape(-1, 2).tolist():
            yield first + begin, first + stop
        first = end


def present(presence: Presence) -> int:
    """How many pages are there."""
    raw = np.frombuffer(presence.bits, np.uint8)
    whole = raw[: presence.pages >> 3]
    rest = int(raw[presence.pages >> 3]) & ((1 << (presence.pages & 7)) - 1) if presence.pages & 7 else 0
    return int(np.unpackbits(whole).sum(dtype=np.int64)) + rest.bit_count()
