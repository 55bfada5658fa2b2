"""Files in the order of the repository, flattened into one list of blobs and cut in windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from active_restore.model import FileRef
    from active_restore.source.restic.index import BlobIndex

# No data blob of restic is larger than 8 MiB (chunker), other writers stay well below this.
MAX_DATA_BLOB_BYTES = 64 << 20
WINDOW_BYTES = 16 << 20


class Batch:
    """Flat lists with one element for each blob: ``rows`` of the index (-1 unknown), ``owners`` (position in refs).

    ``empty`` are the positions of files without blobs, ``failed`` is the file that was given up last (-1 none).
    """

    def __init__(self, refs: Sequence[FileRef], index: BlobIndex) -> None:
        self.failed = -1
        self.empty = [position for position, ref in enumerate(refs) if not ref.content]
        filled = [position for position, ref in enumerate(refs) if ref.content]
        starts = index.rows(b"".join([refs[position].content[:32] for position in filled]))
        ordered = [filled[place] for place in _by_place(starts, index)]
        self._ids = b"".join([refs[position].content for position in ordered])
        counts = [len(refs[position].content) // 32 for position in ordered]
        self._rows = index.rows(self._ids)
        self._sizes = _plain_sizes(self._rows, index)
        self.rows: list[int] = self._rows.tolist()
        self.owners: list[int] = np.repeat(np.array(ordered, np.int64), counts).tolist()

    def blob_id(self, flat: int) -> bytes:
        """Id of a blob of the flat list."""
        return self._ids[32 * flat : 32 * flat + 32]

    def ids(self, first: int, last: int) -> dict[int, bytes]:
        """Ids of a stretch by index row."""
        return {self.rows[flat]: self.blob_id(flat) for flat in range(first, last)}

    def is_last(self, flat: int) -> bool:
        """Whether it is the last blob of its file."""
        return flat + 1 == len(self.owners) or self.owners[flat + 1] != self.owners[flat]

    def known_rows(self, first: int, last: int) -> NDArray[np.int64]:
        """Distinct index rows of a stretch that are worth reading."""
        wanted = self._rows[first:last]
        good = (wanted >= 0) & (self._sizes[first:last] <= MAX_DATA_BLOB_BYTES)
        return np.unique(wanted[good])

    def windows(self) -> Iterator[tuple[int, int]]:
        """Stretches (first, last + 1) of about ``WINDOW_BYTES`` of plaintext."""
        ends = np.cumsum(np.minimum(self._sizes, MAX_DATA_BLOB_BYTES))
        first = 0
        while first < len(ends):
            begin = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, begin + WINDOW_BYTES, side="right")))
            yield first, last
            first = last


def _by_place(rows: NDArray[np.int64], index: BlobIndex) -> list[int]:
    """The order that sorts rows by pack and offset."""
    if not len(index):
        return list(range(len(rows)))
    places = index.entries[np.maximum(rows, 0)]
    order: list[int] = np.lexsort((places[:, 1], places[:, 0])).tolist()
    return order


def _plain_sizes(rows: NDArray[np.int64], index: BlobIndex) -> NDArray[np.int64]:
    """Size of the plaintext of each blob in bytes, 0 for unknown ones."""
    if not len(index):
        return np.zeros(len(rows), np.int64)
    entries = index.entries[np.maximum(rows, 0)].astype(np.int64)
    sizes = np.where(entries[:, 3] > 0, entries[:, 3], entries[:, 2] - 32)
    return np.where(rows >= 0, sizes, 0)
