"""The head start: the first files of a recorded order are restored before the tree becomes visible, within some time.

Until then nobody can wait, so the agent fills them itself: its source is open already, where a process must start first.
A program that starts in the moment of ``ready`` finds them there; behind a process that has just begun with the same
files it would run into each of them (measured: it then waits longer than without any order).

Not guaranteed: that all of them come. When the time is over the tree is revealed, whatever is missing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from active_restore.catalog import FileRow
from active_restore.errors import ActiveRestoreError
from active_restore.model import FileRef, Lane
from active_restore.restore.pace import Pace, Stopped
from active_restore.restore.settle import Filled
from active_restore.restore.worker import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.restore.background import Queue
    from active_restore.restore.board import Board
    from active_restore.restore.shop import Workshop
    from active_restore.source.base import Reader, Source

_LOOK_S = 0.02
# One file must not take all the time; the process begins with what is left.
_LARGEST_BYTES = 64 << 20


class _Time(Pace):
    """No pace but the end of the time."""

    def __init__(self, board: Board, number: int, over: threading.Event) -> None:
        super().__init__(board, number, mannered=False)
        self._over = over

    def wait(self, row: int, size: int, needless: Callable[[], bool] = lambda: False) -> None:
        """As of ``Pace``."""
        if self._over.is_set():
            raise Stopped


class _Place(NamedTuple):
    number: int
    mount_fd: int
    marker_prefix: bytes
    board: Board
    pace: Pace


class HeadStart:
    """``give`` once, before the tree is revealed; ``join`` before the lane ends."""

    def __init__(self, shop: Workshop, source: Source, rows: Queue, number: int) -> None:
        self._shop = shop
        self._source = source
        self._rows = rows
        self._over = threading.Event()
        self._bytes = 0
        self._left: list[int] = []
        self._place = _Place(number, shop.mount_fd, shop.marker_prefix, shop.board, _Time(shop.board, number, self._over))
        # Of its own: a source that hangs must not hold up who waits for the end of the time.
        self._thread = threading.Thread(target=self._run, name="head-start")

    def give(self, seconds: float, stopping: threading.Event) -> None:
        """Return when all is there or the time is over. A limit gives its bytes of that time, at once."""
        self._bytes = int(self._shop.board.rate_bytes_per_s * seconds) or 1 << 62
        end = time.monotonic() + seconds
        self._thread.start()
        while self._thread.is_alive() and not stopping.is_set() and time.monotonic() < end:
            self._thread.join(_LOOK_S)
        self._over.set()

    def join(self) -> None:
        """Wait for the piece in hand."""
        self._thread.join()

    def _run(self) -> None:
        try:
            # What fails here is met again by the background, which tells.
            with contextlib.suppress(ActiveRestoreError, OSError, Stopped), contextlib.closing(self._source.reader()) as reader:
                while self._bytes >= 0 and not self._over.is_set() and (files := self._rows.batch()):
                    self._fill([FileRow(raw[0], FileRef(*raw[1:5]), raw[5]) for raw in files], reader)
            # Who opens a file for writing waits until it is durable: a database does so with all of its files.
            self._shop.settler.flush()
        finally:
            self._shop.board.begin(self._place.number)
            self._rows.put_back(self._left)

    def _fill(self, files: list[FileRow], reader: Reader) -> None:
        batch = Batch(self._place, self._fitting(files))
        try:
            batch.fill(reader)
        finally:
            filled = [Filled(*one) for one in batch.filled]
            done = {one.row for one in filled} | batch.others.keys()
            self._left += [file.row for file in files if file.row not in done]
            self._shop.tally.filled(Lane.PREDICTED, len(filled), sum(one.size for one in filled))
            for one in filled:
                self._shop.settler.add(one)

    def _fitting(self, files: list[FileRow]) -> list[FileRow]:
        """Those that the limit has room for; the first that it has not is the last one. Large ones are left out."""
        fitting = []
        for file in files:
            if file.ref.size > _LARGEST_BYTES:
                continue
            self._bytes -= file.ref.size
            if self._bytes < 0:
                break
            fitting.append(file)
        return fitting
