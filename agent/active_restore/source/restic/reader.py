"""Content of files: blob by blob for a fault, by coalesced ranges for many files."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from active_restore.errors import ContentError
from active_restore.model import Piece
from active_restore.source.restic import parts
from active_restore.source.restic.batch import MAX_DATA_BLOB_BYTES, Batch
from active_restore.source.restic.blobs import BlobLoader
from active_restore.source.restic.runs import LOCAL_GAP_BYTES, REMOTE_GAP_BYTES, Run, coalesce
from active_restore.source.restic.seal import Box, MasterKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from active_restore.model import FileRef
    from active_restore.source.restic.index import BlobIndex
    from active_restore.store.base import Store

# Hashing and decompressing release the interpreter lock: threads help from this size on, and hurt below (measured).
_THREADED_BLOB_BYTES = 128 << 10
# A file of a few blobs is read one by one on a local disk: the first byte comes sooner.
_DIRECT_BLOBS = 4
_REMOTE_THREADS = 4
# Sealed ranges of a window that are held or under way at once: gaps make them larger than the window itself.
_RUNS_AHEAD = 4
_ZEROS = bytes(16)

# Verified blobs by index row; what is missing or damaged is left out.
Plain = dict[int, bytes]


class _Window(NamedTuple):
    """A stretch of a batch and its reads: either only fetched ahead (``sealed``), or opened ahead too (``plain``)."""

    first: int
    last: int
    runs: list[Run]
    sealed: deque[Future[memoryview | None]]
    plain: list[Future[Plain]]


class ResticReader:
    """One connection to a repository. See ``source.base.Reader``."""

    def __init__(self, open_store: Callable[[], Store], index: BlobIndex, keys: MasterKeys) -> None:
        self._open_store = open_store
        self._index = index
        self._keys = keys
        self._local = threading.local()
        self._loaders: list[BlobLoader] = []
        self._blobs = self._loader()
        self._remote = self._blobs.store.remote
        self._gap_bytes = REMOTE_GAP_BYTES if self._remote else LOCAL_GAP_BYTES
        self._pool: ThreadPoolExecutor | None = None

    def read(self, ref: FileRef) -> Iterator[Piece]:
        """See ``Reader.read``."""
        if len(ref.content) > 32 * (1 if self._remote else _DIRECT_BLOBS):
            yield from self._read_ahead(ref)
            return
        offset = 0
        for start in range(0, len(ref.content), 32):
            data = self._blobs.load(ref.content[start : start + 32], MAX_DATA_BLOB_BYTES)
            if offset + len(data) > ref.size:
                raise _size_fault(ref)
            if not _is_zero(data):
                yield Piece(offset, data)
            offset += len(data)
        if offset != ref.size:
            raise _size_fault(ref)

    def read_many(self, refs: Sequence[FileRef]) -> Iterator[tuple[int, Piece | ContentError | None]]:
        """See ``Reader.read_many``."""
        batch = Batch(refs, self._index)
        for position in batch.empty:
            yield position, _size_fault(refs[position]) if refs[position].size else None
        offset = 0
        for window, plain in self._windows(batch):
            for flat in range(window.first, window.last):
                position = batch.owners[flat]
                if position == batch.failed:
                    continue
                ref = refs[position]
                try:
                    data = self._data(batch, flat, plain, ref.size - offset)
                except ContentError as error:
                    batch.failed, offset = position, 0
                    yield position, error
                    continue
                if not _is_zero(data):
                    yield position, Piece(offset, data)
                offset += len(data)
                if batch.is_last(flat):
                    yield position, None if offset == ref.size else _size_fault(ref)
                    offset = 0

    def bounds(self, ref: FileRef) -> Sequence[int] | None:
        """See ``Reader.bounds``: the blobs."""
        return parts.bounds(self._index, ref)

    def read_part(self, ref: FileRef, bounds: Sequence[int], first: int, last: int) -> Iterator[Piece]:
        """See ``Reader.read_part``."""
        start = bounds[first]
        blobs = ref._replace(size=bounds[last] - start, content=ref.content[32 * first : 32 * last])
        for piece in self.read(blobs):
            yield Piece(start + piece.offset, piece.data)

    def close(self) -> None:
        """See ``Reader.close``."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        while self._loaders:
            store = self._loaders.pop().store
            # A remote one is shared with every other reader, and closed with the source.
            if not store.remote:
                store.close()

    def _read_ahead(self, ref: FileRef) -> Iterator[Piece]:
        """Read one file of several blobs by coalesced ranges."""
        for _, item in self.read_many([ref]):
            if isinstance(item, ContentError):
                raise item
            if item is not None:
                yield item

    def _data(self, batch: Batch, flat: int, plain: Plain, room: int) -> bytes:
        """One blob of a batch, at most ``room`` bytes. Raises ``ContentError``."""
        data = plain.get(batch.rows[flat])
        if data is None:
            # It was damaged, or it spoiled the range that it lies in: read alone, and from every copy.
            data = self._blobs.load(batch.blob_id(flat), MAX_DATA_BLOB_BYTES)
        if len(data) > room:
            raise ContentError("the blobs are larger than the file")
        return data

    def _windows(self, batch: Batch) -> Iterator[tuple[_Window, Plain]]:
        """The windows of a batch, opened; the reads of the next one are under way in the meantime."""
        waiting: list[_Window] = []
        try:
            for first, last in batch.windows():
                waiting.append(self._begin(batch, first, last))
                if len(waiting) > 1:
                    window = waiting.pop(0)
                    yield window, self._finish(window, batch)
            for window in waiting:
                yield window, self._finish(window, batch)
        finally:
            for window in waiting:
                jobs: list[Future[Any]] = [*window.sealed, *window.plain]
                for job in jobs:
                    job.cancel()

    def _begin(self, batch: Batch, first: int, last: int) -> _Window:
        given_up = batch.owners[first] == batch.owners[last - 1] == batch.failed
        runs = [] if given_up else list(coalesce(batch.known_rows(first, last), self._index.entries, self._gap_bytes))
        window = _Window(first, last, runs, deque(), [])
        blobs = sum(len(run.rows) for run in runs)
        if sum(run.length for run in runs) > blobs * _THREADED_BLOB_BYTES:
            ids = batch.ids(first, last)
            window.plain.extend(self._threads().submit(self._open_run, run, ids) for run in runs)
        elif self._remote:
            window.sealed.extend(self._threads().submit(self._fetch, run) for run in runs[:_RUNS_AHEAD])
        return window

    def _finish(self, window: _Window, batch: Batch) -> Plain:
        plain: Plain = {}
        for job in window.plain:
            plain |= job.result()
        if window.plain:
            return plain
        ids = batch.ids(window.first, window.last)
        for number, run in enumerate(window.runs):
            plain |= self._blobs.open_sealed(run, self._sealed(window, number), ids)
        return plain

    def _sealed(self, window: _Window, number: int) -> memoryview | None:
        """The bytes of a run; where they are fetched ahead, one more run takes the free place."""
        if not window.sealed:
            return self._blobs.fetch(window.runs[number])
        sealed = window.sealed.popleft().result()
        if number + _RUNS_AHEAD < len(window.runs):
            window.sealed.append(self._threads().submit(self._fetch, window.runs[number + _RUNS_AHEAD]))
        return sealed

    def _fetch(self, run: Run) -> memoryview | None:
        return self._loader().fetch(run)

    def _open_run(self, run: Run, ids: dict[int, bytes]) -> Plain:
        return self._loader().open_run(run, ids)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            threads = _REMOTE_THREADS if self._remote else min(2, os.cpu_count() or 1)
            self._pool = ThreadPoolExecutor(threads, "blobs")
        return self._pool

    def _loader(self) -> BlobLoader:
        """The loader of this thread: stores and keys are not shared between threads."""
        loader: BlobLoader | None = getattr(self._local, "loader", None)
        if loader is None:
            loader = self._local.loader = BlobLoader(self._open_store(), self._index, Box(self._keys))
            self._loaders.append(loader)
        return loader


def _size_fault(ref: FileRef) -> ContentError:
    return ContentError(f"the blobs do not add up to the {ref.size} bytes of the file")


def _is_zero(data: bytes) -> bool:
    # bytes(n) is lazily zeroed memory, so the comparison costs one pass and only for what begins with zeros.
    return data[:16] == _ZEROS[: len(data)] and data == bytes(len(data))
