"""Which ranges to read for a set of blobs: neighbours become one read."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MAX_RUN_BYTES = 8 << 20
# Reading over a gap is cheaper than another request: about what its latency costs in bytes.
LOCAL_GAP_BYTES = 32 << 10
REMOTE_GAP_BYTES = 512 << 10


class Run(NamedTuple):
    """One read: ``rows`` are the blobs in it, ``starts`` and ``lengths`` where each lies in what was read."""

    pack: int
    offset: int
    length: int
    rows: list[int]
    starts: list[int]
    lengths: list[int]
    plain_lengths: list[int]


def coalesce(rows: NDArray[np.int64], entries: NDArray[np.uint32], gap_bytes: int) -> Iterator[Run]:
    """Runs over distinct index rows, ordered by pack and offset, that read over gaps of at most ``gap_bytes``.

    ``entries`` is the table of the index.
    """
    chosen = entries[rows].astype(np.int64)
    order = np.lexsort((chosen[:, 1], chosen[:, 0]))
    rows, chosen = rows[order], chosen[order]
    offsets = chosen[:, 1]
    ends = np.maximum.accumulate((chosen[:, 0] << 33) + offsets + chosen[:, 2])
    gaps = (chosen[1:, 0] << 33) + offsets[1:] - ends[:-1]
    cuts = [0, *(np.flatnonzero(gaps > gap_bytes) + 1).tolist(), len(rows)]
    for first, last in itertools.pairwise(cuts):
        yield from _bounded(rows[first:last], chosen[first:last])


def _bounded(rows: NDArray[np.int64], chosen: NDArray[np.int64]) -> Iterator[Run]:
    """Cut a row of neighbours (one pack, ascending) in runs of at most ``MAX_RUN_BYTES``, one blob at least."""
    offsets = chosen[:, 1]
    ends = offsets + chosen[:, 2]
    first = 0
    while first < len(rows):
        # Overlapping entries are hostile but possible: the end of a run is the largest end in it.
        last = int(np.searchsorted(offsets, offsets[first] + MAX_RUN_BYTES))
        while last > first + 1 and ends[first:last].max() - offsets[first] > MAX_RUN_BYTES:
            last -= 1
        start = int(offsets[first])
        yield Run(
            pack=int(chosen[first, 0]),
            offset=start,
            length=int(ends[first:last].max()) - start,
            rows=rows[first:last].tolist(),
            starts=(offsets[first:last] - start).tolist(),
            lengths=chosen[first:last, 2].tolist(),
            plain_lengths=chosen[first:last, 3].tolist(),
        )
        first = last
