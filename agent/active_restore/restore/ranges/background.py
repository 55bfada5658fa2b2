"""The rest of files by range, step by step: first those that somebody waits for as a whole, or from which tasks want part after
part, each in one go. As long as a file is not whole, the kernel asks about each read of it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from active_restore.catalog import State
from active_restore.errors import ContentError
from active_restore.linux.process import idle_io, name_thread
from active_restore.model import Lane
from active_restore.presence import PAGE_BYTES
from active_restore.restore.pace import Pace, Stopped
from active_restore.restore.progress import Notice
from active_restore.restore.ranges.file import Gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from active_restore.restore.desk import Desk
    from active_restore.restore.ranges.demand import RangeDemand
    from active_restore.restore.ranges.file import RangeFile
    from active_restore.source.base import Reader

_STEP_PAGES = (8 << 20) // PAGE_BYTES
_RETRY_S = 5.0
_MOST_PARTS = 1 << 16
_LOOK_S = 0.5


class _Work(NamedTuple):
    """Pages of a file; ``last`` is 0 for all that are left."""

    row: int
    first: int = 0
    last: int = 0


class RangeBackground:
    """``run`` in a thread of its own. ``refused`` is told of what the backup does not have: row, path, errno, detail."""

    def __init__(self, desk: Desk, demand: RangeDemand, refused: Callable[[int, bytes, int, str], None]) -> None:
        self._shop = shop = desk.shop
        self._source = desk.source
        self._demand = demand
        self._refused = refused
        self._pace = Pace(shop.board, shop.board.ranging_worker)
        self._first: deque[_Work] = deque()
        self._left = deque(map(_Work, demand.files))
        self._tried: set[int] = set()
        self._changed = threading.Condition()
        demand.urgent = self._urge

    def _urge(self, row: int) -> None:
        self._shop.board.urgent[row] = 1
        self.promote([row])

    def promote(self, rows: Iterable[int]) -> None:
        """These before the rest."""
        with self._changed:
            self._first.extend(map(_Work, rows))
            self._changed.notify_all()

    def prefer(self, ranges: Iterable[tuple[int, Sequence[tuple[int, int]]]]) -> None:
        """Parts of files, before the rest; what is promoted comes before them. Called before ``run``."""
        parts: list[_Work] = []
        for row, stretches in ranges:
            for offset, length in stretches or ((0, 1 << 62),):
                if offset >= 0 and length > 0 and len(parts) < _MOST_PARTS:
                    parts.append(_Work(row, *self._demand.files[row].presence.clip(offset, length)))
        self._left.extendleft(reversed(parts))

    def run(self) -> None:
        """Until every file is finished, gone or refused, or the agent ends."""
        name_thread("ar-ranges")
        idle_io()
        board, number = self._shop.board, self._shop.board.ranging_worker
        board.note_working(number, working=True)
        try:
            while (work := self._next()) is not None:
                try:
                    with contextlib.closing(self._source.reader()) as reader:
                        self._go_on(self._demand.files[work.row], work, reader)
                except Stopped:
                    return
                except Exception as error:
                    # Whatever it is, the restore cannot end before this file is done.
                    self._left.append(work)
                    what = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                    self._shop.reporter.event(Notice(f"the background waits {_RETRY_S:.0f} s: {what}"))
                    self._demand.stop.wait(_RETRY_S)
        finally:
            board.note_working(number, working=False)

    def _next(self) -> _Work | None:
        """What is to be done next of a file that is not finished."""
        while not (self._demand.stop.is_set() or self._shop.board.stopping):
            with self._changed:
                if not (self._first or self._left):
                    return None
                hottest = None if self._first else self._hottest()
                work = (self._first or self._left).popleft() if hottest is None else _Work(hottest.row)
            file = self._demand.files.get(work.row)
            if file is not None and not file.done and self._shop.board.state[work.row] == State.RANGED:
                return work
        return None

    def _hottest(self) -> RangeFile | None:
        """The file that tasks want most of, if any of what is left is wanted much."""
        files = (self._demand.files[row] for row in self._demand.hot.copy() - self._tried)
        return max((file for file in files if not file.done), key=lambda file: file.wanted, default=None)

    def _has_time(self, row: int) -> bool:
        """Whether nothing else is wanted more than this file."""
        if self._first:
            return self._first[0].row == row
        hottest = self._hottest()
        return hottest is None or hottest.wanted <= 2 * self._demand.files[row].wanted

    def _go_on(self, file: RangeFile, work: _Work, reader: Reader) -> None:
        """Fill what can be had of it; another one that is wanted more comes in between."""
        row, page = file.row, work.first
        try:
            while (gap := file.next_missing(page)) is not None:
                if work.last and gap[0] >= work.last:
                    return
                if not self._has_time(row):
                    self._left.appendleft(work)
                    return
                page, end = gap[0], min(gap[1], gap[0] + _STEP_PAGES, work.last or gap[1])
                # Tasks may have wanted all of it meanwhile; then the restore is over, and its end waits for this thread.
                self._pace.wait(row, (end - page) * PAGE_BYTES, lambda: file.done or self._demand.stop.is_set())
                if file.done or self._demand.stop.is_set():
                    return
                with contextlib.suppress(ContentError):
                    moved = file.fill(page, end, reader)
                    self._shop.tally.filled(Lane.BACKGROUND, 0, moved)
                    self._shop.board.add_moved(self._shop.board.ranging_worker, moved)
                    # Counted as there by ``RangeCount``.
                    self._shop.board.settled(self._shop.board.ranging_worker, moved)
            if work.last:
                # All is there from its first page on; what lies before is seen to later.
                return
            self._tried.add(row)
            if file.damage is None:
                self._demand.finish(file)
            elif not file.done:
                self._refused(row, file.file.ref.path, file.damage.errno, str(file.damage))
        except Gone:
            self._demand.conclude_gone(file)
