"""All files by range of one restore: found again or new, their faults, their background, and what is told of them."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, TypeAlias

from active_restore.catalog import State
from active_restore.linux import fiemap
from active_restore.linux.files import punch_hole
from active_restore.marker import TOUCHED
from active_restore.model import Ranged
from active_restore.placeholder import open_inode
from active_restore.presence import PAGE_BYTES, Presence, memory_bytes
from active_restore.restore.progress import RangeCount
from active_restore.restore.ranges.background import RangeBackground
from active_restore.restore.ranges.demand import RangeDemand
from active_restore.restore.ranges.file import RangeFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from active_restore.catalog import FileRow
    from active_restore.model import Fault
    from active_restore.restore.desk import Desk
    from active_restore.restore.progress import Waiting


Hold: TypeAlias = "Callable[[Sequence[Ranged]], list[tuple[memoryview, bool]]]"


class RangeLane:
    """``load`` before faults are served; ``start`` when the background may begin; ``stop``, then ``close``.

    ``mechanism`` is what lets tasks fault by range; without one they wait for whole files.
    """

    def __init__(self, desk: Desk, settled: Callable[[Sequence[int]], None]) -> None:
        self._desk = desk
        self._shop = desk.shop
        self._mechanism = ""
        self._windows: Callable[[], bool] = lambda: False
        self._background: RangeBackground | None = None
        self._worker: threading.Thread | None = None
        self._demand = RangeDemand(desk, settled)

    def load(self, files: Sequence[FileRow], hold: Hold, mechanism: str, windows: Callable[[], bool]) -> None:
        """These are by range; ``hold`` is ``Interceptor.hold_ranges``, ``windows`` its property of that name."""
        self._mechanism, self._windows = mechanism, windows
        memories = hold([Ranged(file.row, file.ref.size, file.handle) for file in files])
        for number, file in enumerate(files):
            held = number < len(memories)
            memory, new = memories[number] if held else (memoryview(bytearray(memory_bytes(file.ref.size))), True)
            presence = Presence(memory, file.ref.size)
            fresh = new and not self._recall(file, presence)
            one = RangeFile(file, presence, self._shop, self._demand.stop, held=held, fresh=fresh)
            self._demand.files[file.row] = one
            self._shop.board.state[file.row] = State.RANGED

    def _recall(self, file: FileRow, presence: Presence) -> bool:
        """What the file system knows of earlier agents and of users; whether that is anything."""
        fd = open_inode(self._shop.mount_fd, file.handle)
        if fd is None:
            return True
        try:
            if lost := list(fiemap.unwritten(fd)):
                self._give_back(file, lost)
            size = os.fstat(fd).st_size
            if TOUCHED in os.listxattr(fd):
                presence.touch()
            known = presence.touched or size != file.ref.size
            # Where a user cut it off while nobody guarded it.
            presence.add(min(-(-size // PAGE_BYTES), presence.pages), presence.pages)
            for begin, end in fiemap.written(fd):
                last = presence.pages if end >= file.ref.size else end // PAGE_BYTES
                presence.add(min(-(-begin // PAGE_BYTES), last), last)
                known = True
        finally:
            os.close(fd)
        return known

    def _give_back(self, file: FileRow, lost: Sequence[tuple[int, int]]) -> None:
        """As ``Filling`` does: what the disk did not take must not be written into the same pages again."""
        # Nobody has written to a file that is being executed (ETXTBSY).
        with contextlib.suppress(OSError):
            fd = open_inode(self._shop.mount_fd, file.handle, os.O_RDWR)
            if fd is not None:
                try:
                    found = os.fstat(fd)
                    for begin, end in lost:
                        punch_hole(fd, begin, end - begin)
                    if found.st_mtime_ns != found.st_ctime_ns:
                        # Not that of a write of ours.
                        os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
                finally:
                    os.close(fd)

    def start(
        self, refused: Callable[[int, bytes, int, str], None], first: Sequence[tuple[int, Sequence[tuple[int, int]]]]
    ) -> None:
        """Fill the rest meanwhile: ``first`` these ranges of rows, (offset, length); a row without any as a whole."""
        if self._demand.files:
            self._background = RangeBackground(self._desk, self._demand, refused)
            self._background.prefer(first)
            self._worker = threading.Thread(target=self._background.run, name="ranges")
            self._worker.start()

    def before(self, otherwise: Callable[[Fault], None]) -> Callable[[Fault], None]:
        """Who takes faults: of files by range this lane, of all others ``otherwise``."""

        def on_fault(fault: Fault) -> None:
            if not self._demand.on_fault(fault):
                otherwise(fault)

        return on_fault if self._demand.files else otherwise

    @property
    def awaited(self) -> int:
        """How many tasks wait now."""
        return self._demand.awaited

    def look(self) -> None:
        """Called now and then: patient tasks go on where they can."""
        self._demand.patience.look()

    def waiting(self) -> list[Waiting]:
        """Who waits now."""
        return self._demand.waiting()

    def promote(self, rows: Sequence[int]) -> int:
        """Bring these forward; how many of them are by range and not finished."""
        mine = [row for row in rows if row in self._demand.files and not self._demand.files[row].done]
        if self._background is not None:
            self._background.promote(mine)
        return len(mine)

    def count(self) -> RangeCount:
        """For people."""
        files = [file for file in self._demand.files.values() if not file.done]
        there = sum(min(file.present_pages * PAGE_BYTES, file.file.ref.size) for file in files)
        total = sum(file.file.ref.size for file in files)
        return RangeCount(self._mechanism, len(files), total, there, self._demand.wanted_bytes, self._windows())

    def stop(self) -> None:
        """The agent ends: tasks that wait are the interceptor's from now on."""
        self._demand.stop.set()
        if self._worker is not None:
            self._worker.join()

    def close(self) -> None:
        """No fault comes any more."""
        self._demand.close()
