"""One file by range: fetch what is missing of it, and finish it. Any number of threads may want pages at a time."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from active_restore.catalog import FileRow, State
from active_restore.errors import ContentError, SourceUnavailable
from active_restore.linux.leases import open_for_writing
from active_restore.marker import TOUCHED, marker_value
from active_restore.placeholder import open_inode, read_marker, unmark
from active_restore.presence import PAGE_BYTES
from active_restore.restore.ranges.ahead import Ahead
from active_restore.restore.ranges.pages import missing, present, whole_pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from active_restore.model import Piece
    from active_restore.presence import Presence
    from active_restore.restore.ranges.pages import Chunk
    from active_restore.restore.shop import Workshop
    from active_restore.source.base import Reader

STEP_PAGES = (16 << 20) // PAGE_BYTES
_LOOK_S = 0.5


class Gone(Exception):
    """The user has deleted the file, or taken its marker away."""


class _Claim(NamedTuple):
    """Pages that one thread fetches, and the parts of the source that hold them."""

    pages: tuple[int, int]
    parts: tuple[int, int]


class RangeFile:
    """``held``: whether tasks fault by range; else they wait for the whole file. ``stop`` tells that the agent ends.

    ``fresh``: nobody has ever filled a page of it; ``wanted`` counts its faults.
    """

    def __init__(
        self, file: FileRow, presence: Presence, shop: Workshop, stop: threading.Event, *, held: bool, fresh: bool
    ) -> None:
        self.file = file
        self.presence = presence
        self.held = held
        self.done = False
        self.ahead = Ahead()
        self.wanted = 0
        self.present_pages = present(presence)
        self._shop = shop
        self._stop = stop
        self._changed = threading.Condition()
        self._busy: list[tuple[int, int]] = []
        self._damage: list[tuple[int, int, ContentError]] = []
        self._bounds: Sequence[int] | None = None
        self._writing = threading.Lock()
        self._finishing = threading.Lock()
        self._mtime_ns = 0 if fresh else -1
        # Open since before our first write: it is told of a write-back that failed, whoever else was told.
        self._witness = -1

    @property
    def row(self) -> int:
        """Of the catalog."""
        return self.file.row

    @property
    def damage(self) -> ContentError | None:
        """What was found first that the backup does not have any more."""
        return self._damage[0][2] if self._damage else None

    def is_busy(self, first: int, last: int) -> bool:
        """Whether somebody fetches one of these pages."""
        return any(begin < last and first < end for begin, end in self._busy)

    def next_missing(self, first: int) -> tuple[int, int] | None:
        """The first stretch from here on that is missing and could be had."""
        with self._changed:
            for begin, end in missing(self.presence, first, self.presence.pages):
                for bad_first, bad_last, _ in sorted(self._damage, key=lambda bad: bad[0]):
                    if bad_first <= begin < bad_last:
                        begin = bad_last
                    elif begin < bad_first < end:
                        end = bad_first
                if begin < end:
                    return begin, end
        return None

    def fill(self, first: int, last: int, reader: Reader) -> int:
        """Return when all of these pages are there: how many bytes that took.

        Raises ``ContentError`` where the backup does not have one of them, ``SourceUnavailable``, ``OSError`` and ``Gone``.
        """
        moved = 0
        if self._bounds is None:
            self._bounds = reader.bounds(self.file.ref)
            if self._bounds is None:
                raise ContentError("what the backup has of it cannot be found by range")
        while (claim := self._claim(first, last, self._bounds)) is not None:
            try:
                moved += self._fetch(claim, self._bounds, reader)
            finally:
                with self._changed:
                    self._busy.remove(claim.pages)
                    self._changed.notify_all()
        return moved

    def _claim(self, first: int, last: int, bounds: Sequence[int]) -> _Claim | None:
        with self._changed:
            while (gap := next(missing(self.presence, first, last), None)) is not None:
                begin, end = gap[0], min(gap[1], gap[0] + STEP_PAGES)
                for bad_first, bad_last, error in self._damage:
                    if bad_first <= begin < bad_last:
                        raise error
                    if begin < bad_first < end:
                        end = bad_first
                if self._stop.is_set():
                    raise SourceUnavailable("the agent ends")
                if any(busy <= begin < until for busy, until in self._busy):
                    self._changed.wait(_LOOK_S)
                    continue
                end = min([end, *(busy for busy, _ in self._busy if busy > begin)])
                claim = self._widened(begin, end, bounds)
                self._busy.append(claim.pages)
                return claim
        return None

    def _widened(self, begin: int, end: int, bounds: Sequence[int]) -> _Claim:
        """All pages that the parts of these hold as a whole, up to what others fetch."""
        size = self.file.ref.size
        part = _last_at_most(bounds, begin * PAGE_BYTES)
        stop = _last_at_most(bounds, min(end * PAGE_BYTES, size) - 1) + 1
        low = max([-(-bounds[part] // PAGE_BYTES), *(until for _, until in self._busy if until <= begin)])
        high = self.presence.pages if bounds[stop] >= size else bounds[stop] // PAGE_BYTES
        high = min([high, *(busy for busy, _ in self._busy if busy >= end)])
        return _Claim((low, high), (part, stop))

    def _fetch(self, claim: _Claim, bounds: Sequence[int], reader: Reader) -> int:
        part, stop = claim.parts
        try:
            pieces = reader.read_part(self.file.ref, bounds, part, stop)
            return self._store(claim.pages, (bounds[part], bounds[stop]), pieces)
        except ContentError as error:
            if stop - part == 1:
                self._note_damage((bounds[part], bounds[stop]), error)
                return 0
        return self._salvage(claim, bounds, reader)

    def _salvage(self, claim: _Claim, bounds: Sequence[int], reader: Reader) -> int:
        """One part at a time: what is damaged spoils no other but the pages that it shares with its neighbours."""
        moved = 0
        good: list[Piece] = []
        start = bounds[claim.parts[0]]
        for part in range(*claim.parts):
            try:
                good.extend(reader.read_part(self.file.ref, bounds, part, part + 1))
            except ContentError as error:
                moved += self._store(claim.pages, (start, bounds[part]), good)
                self._note_damage((bounds[part], bounds[part + 1]), error)
                good, start = [], bounds[part + 1]
        return moved + self._store(claim.pages, (start, bounds[claim.parts[1]]), good)

    def _note_damage(self, span: tuple[int, int], error: ContentError) -> None:
        with self._changed:
            self._damage.append((span[0] // PAGE_BYTES, -(-span[1] // PAGE_BYTES), error))

    def _store(self, pages: tuple[int, int], span: tuple[int, int], pieces: Iterable[Piece]) -> int:
        """Write what is missing of these pages, as far as the bytes of ``span`` make them whole; how many bytes that were."""
        size = self.file.ref.size
        first = max(pages[0], -(-span[0] // PAGE_BYTES))
        last = min(pages[1], self.presence.pages if span[1] >= size else span[1] // PAGE_BYTES)
        gaps = list(missing(self.presence, first, last))
        with contextlib.closing(_Opened(self._shop, self.file)):
            for chunk in whole_pages(pieces, *span, size):
                self._write(chunk, gaps)
        with self._changed:
            for begin, end in gaps:
                self.presence.add(begin, end)
                self.present_pages += end - begin
        return sum(min(end * PAGE_BYTES, size) - begin * PAGE_BYTES for begin, end in gaps)

    def _write(self, chunk: Chunk, gaps: list[tuple[int, int]]) -> None:
        """The parts of a chunk that lie in gaps. Times are put back unless a writer was let go on.

        Open for writing only while we write: execve(2) fails as long, and ``has_writers`` waits.
        """
        data = memoryview(chunk.data)
        end = chunk.offset + len(data)
        spans = [(max(first * PAGE_BYTES, chunk.offset), min(last * PAGE_BYTES, end)) for first, last in gaps]
        with self._writing, contextlib.closing(_Opened(self._shop, self.file, os.O_RDWR)) as opened:
            if self._witness < 0:
                self._witness = open_inode(self._shop.mount_fd, self.file.handle) or -1
            times = self._times(opened.fd)
            try:
                for begin, stop in spans:
                    if begin < stop:
                        _pwrite(opened.fd, data[begin - chunk.offset : stop - chunk.offset], begin)
            finally:
                if not self.presence.touched:
                    os.utime(opened.fd, ns=times)

    def _times(self, fd: int) -> tuple[int, int]:
        found = os.fstat(fd)
        if self._mtime_ns < 0 and found.st_mtime_ns == found.st_ctime_ns:
            # Only writing makes these two equal: a filler that died here left its own time, not a user's.
            self._mtime_ns = self.file.ref.mtime_ns
        else:
            self._mtime_ns = found.st_mtime_ns
        return found.st_atime_ns, self._mtime_ns

    def has_writers(self) -> bool:
        """Whether anybody else has it open for writing. Raises ``Gone``."""
        with self._writing, contextlib.closing(_Opened(self._shop, self.file)) as opened:
            return open_for_writing(opened.fd)

    def touch(self) -> None:
        """A writer is about to go on: times are its own from now on, also for the next agent."""
        if self.presence.touched:
            return
        with self._writing, contextlib.closing(_Opened(self._shop, self.file)) as opened:
            os.setxattr(opened.fd, TOUCHED, b"")
            self.presence.touch()

    def discard(self) -> None:
        """A task truncates the file to nothing: do it for it, so that nobody fills or sees what it does not want any more."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            with self._writing, contextlib.closing(_Opened(self._shop, self.file, os.O_RDWR)) as opened:
                os.ftruncate(opened.fd, 0)
            self.presence.add(0, self.presence.pages)
            self.present_pages = self.presence.pages

    def settle(self) -> bool:
        """All pages are there: durable, noted, unmarked, and that durable, too; ``False`` where that was so before."""
        with self._finishing:
            if self.done:
                return False
            self._settle()
            self.done = True
            return True

    def _settle(self) -> None:
        fd = open_inode(self._shop.mount_fd, self.file.handle)
        if fd is None:
            raise Gone
        try:
            self._sync(fd)
            self._shop.catalog.set_states([self.row], State.SETTLED)
            with contextlib.suppress(OSError):
                os.removexattr(fd, TOUCHED)
            unmark(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._shop.board.state[self.row] = State.SETTLED
        self._shop.board.note_marked([self.row], marked=False)

    def _sync(self, fd: int) -> None:
        if (failure := self._shop.settler.failure) is not None:
            raise OSError(failure.errno, failure.strerror)
        try:
            os.fdatasync(self._witness if self._witness >= 0 else fd)
        except OSError as error:
            # To try again would prove nothing.
            self._shop.settler.fail(error)
            raise
        if self._witness >= 0:
            os.close(self._witness)
            self._witness = -1


class _Opened:
    """A descriptor of a file that is still ours to fill. Raises ``Gone``."""

    def __init__(self, shop: Workshop, file: FileRow, flags: int = os.O_RDONLY) -> None:
        fd = open_inode(shop.mount_fd, file.handle, flags)
        if fd is None:
            raise Gone
        self.fd = fd
        if read_marker(fd) != marker_value(shop.marker_prefix, file.row, file.handle):
            os.close(fd)
            raise Gone

    def close(self) -> None:
        """Give it back."""
        os.close(self.fd)


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _last_at_most(bounds: Sequence[int], offset: int) -> int:
    """The part that this byte lies in."""
    low, high = 0, len(bounds) - 2
    while low < high:
        middle = (low + high + 1) // 2
        if bounds[middle] <= offset:
            low = middle
        else:
            high = middle - 1
    return low
