"""Content of files: blob by blob for a fault, by coalesced ranges for many files."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from active_restore.errors import ContentError
from active_restore.model import Piece
from active_restore.source.restic.blobs import BlobLoader
from active_restore.source.restic.runs import Run, coalesce
from active_restore.source.restic.seal import Box, MasterKeys
from active_restore.store.base import ObjectNotFound, ObjectTruncated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from active_restore.model import FileRef
    from active_restore.source.restic.index import BlobIndex
    from active_restore.store.base import Store

# No data blob of restic is larger than 8 MiB (chunker), other writers stay well below this.
MAX_DATA_BLOB_BYTES = 64 << 20
WINDOW_BYTES = 16 << 20
_FETCH_THREADS = 4
_NO_DATA = b""
_ZEROS = bytes(16)


class _Window(NamedTuple):
    """A stretch of the flat list of blobs of a batch, and the reads that bring it."""

    first: int
    last: int
    reads: list[tuple[Run, Future[memoryview] | None]]


class ResticReader:
    """One connection to a repository. See ``source.base.Reader``."""

    def __init__(self, store: Store, index: BlobIndex, keys: MasterKeys) -> None:
        self._store = store
        self._index = index
        self._box = Box(keys)
        self._blobs = BlobLoader(store, index, self._box)
        # Only where requests have a latency: on a local disk the page cache reads ahead better than threads do.
        self._fetchers = ThreadPoolExecutor(_FETCH_THREADS, "fetch") if store.remote else None

    def read(self, ref: FileRef) -> Iterator[Piece]:
        """See ``Reader.read``."""
        if len(ref.content) > 64 and self._fetchers is not None:
            yield from self._read_ahead(ref)
            return
        offset = 0
        for start in range(0, len(ref.content), 32):
            data = self._blobs.load(ref.content[start : start + 32], MAX_DATA_BLOB_BYTES)
            if offset + len(data) > ref.size:
                break
            if not _is_zero(data):
                yield Piece(offset, data)
            offset += len(data)
        else:
            if offset == ref.size:
                return
        raise ContentError(f"the blobs do not add up to the {ref.size} bytes of the file")

    def read_many(self, refs: Sequence[FileRef]) -> Iterator[tuple[int, Piece | ContentError | None]]:
        """See ``Reader.read_many``."""
        batch = _Batch(refs, self._index)
        for position in batch.empty:
            yield position, _end(refs[position], 0)
        offset = 0
        failed = -1
        for window in self._windows(batch):
            plain = self._open(window, batch, failed)
            for flat in range(window.first, window.last):
                position = batch.owners[flat]
                if position == failed:
                    continue
                ref = refs[position]
                try:
                    data = plain.get(batch.rows[flat]) or self._blobs.load(batch.blob_id(flat), MAX_DATA_BLOB_BYTES)
                    if offset + len(data) > ref.size:
                        raise _size_fault(ref)
                except ContentError as error:
                    failed, offset = position, 0
                    yield position, error
                    continue
                if not _is_zero(data):
                    yield position, Piece(offset, data)
                offset += len(data)
                if batch.is_last(flat):
                    yield position, _end(ref, offset)
                    offset = 0

    def close(self) -> None:
        """See ``Reader.close``."""
        if self._fetchers is not None:
            self._fetchers.shutdown(wait=True, cancel_futures=True)
        self._store.close()

    def _read_ahead(self, ref: FileRef) -> Iterator[Piece]:
        """Read one file of several blobs by coalesced ranges."""
        for _, item in self.read_many([ref]):
            if isinstance(item, ContentError):
                raise item
            if item is not None:
                yield item

    def _windows(self, batch: _Batch) -> Iterator[_Window]:
        """The windows of a batch, each with its reads; the reads of the next one are under way in the meantime."""
        ready: _Window | None = None
        for first, last in batch.windows():
            runs = coalesce(batch.known_rows(first, last), self._index.entries)
            following = _Window(first, last, [(run, self._submit(run)) for run in runs])
            if ready is not None:
                yield ready
            ready = following
        if ready is not None:
            yield ready

    def _submit(self, run: Run) -> Future[memoryview] | None:
        if self._fetchers is None:
            return None
        return self._fetchers.submit(self._fetch, run)

    def _fetch(self, run: Run) -> memoryview:
        return self._store.get_range(self._blobs.path(run.pack), run.offset, run.length)

    def _open(self, window: _Window, batch: _Batch, failed: int) -> dict[int, bytes]:
        """Verified blobs of a window by index row; those that are missing or damaged are left out."""
        plain: dict[int, bytes] = {}
        if all(owner == failed for owner in batch.owners[window.first : window.last]):
            return plain
        ids = {batch.rows[flat]: batch.blob_id(flat) for flat in range(window.first, window.last)}
        blob = self._box.blob
        for run, read in window.reads:
            try:
                sealed = read.result() if read is not None else self._fetch(run)
            except (ObjectNotFound, ObjectTruncated):
                # One bad blob spoils the range: each is tried alone when its turn comes.
                continue
            places = zip(run.rows, run.starts, run.lengths, run.plain_lengths, strict=True)
            for row, start, length, plain_length in places:
                try:
                    plain[row] = blob(sealed[start : start + length], plain_length, ids[row])
                except ContentError:
                    continue
        return plain


class _Batch:
    """Files in the order of the source, flattened into one list of blobs."""

    def __init__(self, refs: Sequence[FileRef], index: BlobIndex) -> None:
        self.empty = [position for position, ref in enumerate(refs) if not ref.content]
        filled = [position for position, ref in enumerate(refs) if ref.content]
        starts = index.rows(b"".join([refs[position].content[:32] for position in filled]))
        first = index.entries[np.maximum(starts, 0)].astype(np.int64) if len(index) else np.zeros((len(filled), 4), int)
        order = np.lexsort((first[:, 1], first[:, 0])).tolist()
        ordered = [filled[place] for place in order]
        self._ids = b"".join([refs[position].content for position in ordered])
        counts = [len(refs[position].content) // 32 for position in ordered]
        self._rows = index.rows(self._ids)
        self.rows: list[int] = self._rows.tolist()
        self.owners: list[int] = np.repeat(np.array(ordered, np.int64), counts).tolist()
        self._sizes = self._plain_sizes(index)

    def blob_id(self, flat: int) -> bytes:
        """Id of a blob of the flat list."""
        return self._ids[32 * flat : 32 * flat + 32]

    def is_last(self, flat: int) -> bool:
        """Whether it is the last blob of its file."""
        return flat + 1 == len(self.owners) or self.owners[flat + 1] != self.owners[flat]

    def known_rows(self, first: int, last: int) -> NDArray[np.int64]:
        """Distinct index rows of a stretch that are worth reading."""
        wanted = self._rows[first:last]
        good = (wanted >= 0) & (self._sizes[first:last] <= MAX_DATA_BLOB_BYTES)
        return np.unique(wanted[good])

    def windows(self) -> Iterator[tuple[int, int]]:
        """Stretches of about ``WINDOW_BYTES`` of plaintext."""
        ends = np.cumsum(np.minimum(self._sizes, MAX_DATA_BLOB_BYTES))
        first = 0
        while first < len(ends):
            begin = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, begin + WINDOW_BYTES, side="right")))
            yield first, last
            first = last

    def _plain_sizes(self, index: BlobIndex) -> NDArray[np.int64]:
        if not len(index):
            return np.zeros(len(self._rows), np.int64)
        entries = index.entries[np.maximum(self._rows, 0)].astype(np.int64)
        sizes = np.where(entries[:, 3] > 0, entries[:, 3], entries[:, 2] - 32)
        return np.where(self._rows >= 0, sizes, 0)


def _end(ref: FileRef, offset: int) -> ContentError | None:
    return None if offset == ref.size else _size_fault(ref)


def _size_fault(ref: FileRef) -> ContentError:
    return ContentError(f"the blobs do not add up to the {ref.size} bytes of the file")


def _is_zero(data: bytes) -> bool:
    # bytes(n) is lazily zeroed memory, so the comparison costs one pass and only for what begins with zeros.
    return data[:16] == _ZEROS[: len(data)] and data == bytes(len(data))
