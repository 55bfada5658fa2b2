"""The demand lane: a fault comes in, its file is restored in the very same thread, its tasks go on.

Faults of one inode are coalesced: the first thread works, the others only add their tasks to those who wait. Whatever may
take long (big files, remote sources, writers, who wait for the disk) moves to threads of its own, out of the way. While
the source cannot be reached, the files that are wanted wait in a list that one thread tries again; nobody is refused
before ``fault_timeout_s``.

Every fault ends in a release or a refusal; an unexpected exception refuses with EIO and is reported.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from active_restore.catalog import FileRow, State
from active_restore.errors import ActiveRestoreError, ContentError, SourceUnavailable
from active_restore.linux import tasks
from active_restore.linux.latency import Wakefulness
from active_restore.model import Fault, Gate, Intent, Lane
from active_restore.placeholder import open_inode, unmark
from active_restore.restore.desk import FIRST_RETRY_S, LAST_RETRY_S, errno_of
from active_restore.restore.patience import Patience
from active_restore.restore.progress import Notice, Refused
from active_restore.restore.settle import Filled
from active_restore.restore.writer import Claim, Filling

if TYPE_CHECKING:
    from active_restore.restore.desk import Desk
    from active_restore.restore.progress import Served, Waiting

# More is not restored in the thread that serves faults, and still more not side by side with many others.
_QUICK_BYTES = 1 << 20
_BULK_BYTES = 8 << 20
_SLOW_THREADS = 16
_BULK_THREADS = 4
_AWAKE_SECONDS = 1.0
# A task that truncates a file of at most this size gets it restored first: that keeps the old content should its open
# fail after all, and costs nothing that anyone notices.
_TRUNCATE_AT_ONCE_BYTES = 1 << 20


class Demand:
    """``patience.on_fault`` is called by the interceptor's threads; ``retry_stalled`` runs in a thread of its own."""

    def __init__(self, desk: Desk, on_served: Served) -> None:
        self._on_served = on_served
        self._desk = desk
        self._shop = desk.shop
        self.patience = Patience(self._is_missing, self.on_fault)
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Fault]] = {}
        self._refusals: dict[int, int] = {}
        self._slow = ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="demand-slow")
        self._bulk = ThreadPoolExecutor(_BULK_THREADS, thread_name_prefix="demand-bulk")
        self._wakefulness = Wakefulness()
        self._last_fault = 0.0
        self._stalled: list[FileRow] = []
        self._stall_changed = threading.Condition()
        self._closing = False

    def warm_up(self) -> None:
        """Called by each thread that will serve faults: the first one need not wait until everything is open."""
        self._shop.catalog.file(0)
        with contextlib.suppress(ActiveRestoreError):
            self._desk.reader()
        # What is there by now stays: to look through all of it (15 ms) would make tasks wait.
        gc.freeze()

    def on_fault(self, fault: Fault) -> None:
        """Restore what a task needs, or let it wait with those who wait for the same file already."""
        row = fault.row
        self._last_fault = time.monotonic()
        self._wakefulness.begin()
        if tasks.is_ours(fault.task.tid):
            # A thread of ours opened a placeholder, not from the passage: waiting for ourselves would be for ever.
            self._desk.refuse(row, errno.EAGAIN, [fault])
            self._shop.reporter.event(Notice(f"the agent itself opened a placeholder (row {row}); it was refused"))
            return
        known = 0 <= row < self._shop.board.rows
        if known and self._shop.board.state[row] == State.FILLED and fault.intent is Intent.READ:
            self._shop.board.note_read(row)
            self._desk.answers.release(row, Gate.READ, [fault])
            if not fault.patient:
                # Wanted: it stays in the page cache, and what it needs is looked for.
                self._shop.board.urgent[row] = 1
                self._on_served(row, was_there=True)
            return
        with self._lock:
            if known:
                # A worker that has claimed this very file must not go on at the pace of the background.
                self._shop.board.urgent[row] = 1
            waiting = self._waiting.get(row)
            if waiting is not None:
                waiting.append(fault)
                return
            self._waiting[row] = [fault]
        try:
            self._serve(fault)
        except Exception as error:
            # Whatever it is: a task must neither hang nor read zeros.
            self._fail(row, errno.EIO, f"{type(error).__name__}: {error}")

    def _is_missing(self, fault: Fault) -> bool:
        return 0 <= fault.row < self._shop.board.rows and self._shop.board.state[fault.row] == State.LAID

    def _serve(self, fault: Fault) -> None:
        file = self._shop.catalog.file(fault.row)
        if file is None:
            self._fail(fault.row, errno.EIO, "its marker names a row that the catalog does not have")
        elif fault.handle and fault.handle != file.handle:
            self._pass_copy(fault)
        elif self._shop.board.state[file.row] == State.LAID and file.ref.size > _BULK_BYTES:
            self._bulk.submit(self._restore_guarded, file)
        elif self._desk.source.remote or file.ref.size > _QUICK_BYTES or fault.intent is not Intent.READ:
            self._slow.submit(self._restore_guarded, file)
        else:
            self._restore(file, wait=False)

    def _pass_copy(self, fault: Fault) -> None:
        """A user copied a file together with its marker (cp -a): the copy is no placeholder."""
        inode = open_inode(self._shop.mount_fd, fault.handle)
        if inode is not None:
            try:
                unmark(inode)
            finally:
                os.close(inode)
        with self._lock:
            faults = self._waiting.pop(fault.row)
        copies = [one for one in faults if one.handle == fault.handle]
        # The gate of the copy is its marker, which is gone; the row's own gate stays as it is.
        self._desk.answers.release(fault.row, Gate.ALL, copies)
        for other in faults:
            if other.handle != fault.handle:
                self.on_fault(other)

    def _restore_guarded(self, file: FileRow) -> None:
        try:
            self._restore(file)
        except Exception as error:
            self._fail(file.row, errno.EIO, f"{type(error).__name__}: {error}")

    def _restore(self, file: FileRow, *, wait: bool = True) -> None:
        """Fill (or find filled) and let go on; the failures that can be expected become refusals or waits.

        Without ``wait`` a file that a worker is just filling is left to another thread.
        """
        row = file.row
        if self._shop.board.state[row] == State.REFUSED:
            self._fail(row, self._refusals.get(row, errno.EIO), "")
            return
        was_there = self._shop.board.state[row] == State.FILLED
        filling = Filling(self._shop.mount_fd, file, self._shop.board, self._shop.marker_prefix)
        try:
            claim = filling.claim(wait=wait)
            ours = claim is Claim.OURS
            if ours:
                self._fill(filling)
                claim = Claim.FILLED_ALREADY
            if claim is Claim.BUSY:
                self._slow.submit(self._restore_guarded, file)
            elif claim is Claim.FILLED_ALREADY:
                self._let_go_on(file, filling, ours=ours)
                self._on_served(row, was_there=was_there)
            else:
                self._conclude(file, filling)
        except ContentError as error:
            self._refuse_file(file, error)
        except SourceUnavailable as error:
            self._stall(file, error)
        except OSError as error:
            filling.abort()
            self._fail(row, errno_of(error), f"cannot be written: {error.strerror}")
        finally:
            filling.close()

    def _conclude(self, file: FileRow, filling: Filling) -> None:
        """Nothing to fill: settled before (its marker may still be there), stripped of its marker, or deleted."""
        if filling.inode >= 0 and self._shop.board.state[file.row] == State.SETTLED:
            unmark(filling.inode)
        elif self._shop.board.state[file.row] == State.LAID:
            self._shop.board.state[file.row] = State.GONE
            self._shop.catalog.set_states([file.row], State.GONE)
        self._shop.tally.done([(file.row, file.ref.size)])
        self._finish(file, Gate.ALL)

    def _fill(self, filling: Filling) -> None:
        file = filling.file
        self._shop.board.demand_ns = time.monotonic_ns()
        with self._lock:
            truncates = all(fault.intent is Intent.TRUNCATE for fault in self._waiting.get(file.row, ()))
        if truncates and file.ref.size > _TRUNCATE_AT_ONCE_BYTES:
            filling.discard()
            return
        told = file.ref.size > _QUICK_BYTES
        try:
            for piece in self._desk.reader().read(file.ref):
                if self._closing:
                    raise SourceUnavailable("the agent ends")
                filling.write(piece)
                if told:
                    self._shop.tally.writing(file.row, filling.written)
        except (ContentError, SourceUnavailable, OSError) as error:
            self._shop.tally.writing(file.row, 0)
            if not isinstance(error, OSError):
                filling.abort()
            raise
        filling.finish(self._desk.answers.filled)
        self._shop.tally.filled(Lane.DEMAND, 1, file.ref.size, told=told)

    def _let_go_on(self, file: FileRow, filling: Filling, *, ours: bool) -> None:
        """Readers at once; settle for writers before they go on."""
        row = file.row
        with self._lock:
            readers = [fault for fault in self._waiting[row] if fault.intent is Intent.READ]
            writers = [fault for fault in self._waiting[row] if fault.intent is not Intent.READ]
            if writers:
                self._waiting[row] = writers
            else:
                del self._waiting[row]
        try:
            if readers:
                self._shop.board.note_read(row)
                self._desk.release(file, Gate.READ, readers)
            if writers:
                self._shop.settler.settle_for_writer(row, filling.inode, ours=ours)
                self._shop.board.state[row] = State.SETTLED
                self._shop.tally.done([(row, file.ref.size)])
                self._finish(file, Gate.ALL)
        finally:
            # Also where there was no room for taking its marker away: the writer is refused, the file is settled later.
            self._shop.settler.add(Filled(row, filling.keep_inode(), file.ref.size), adopted=not (ours or writers))

    def _finish(self, file: FileRow, gate: Gate) -> None:
        """Everybody who waits for this file may go on."""
        with self._lock:
            faults = self._waiting.pop(file.row, [])
        self._desk.release(file, gate, faults)

    def _refuse_file(self, file: FileRow, error: ContentError) -> None:
        """The backup does not have this content (any more): the placeholder stays, tasks get an errno."""
        self.note_refused(file.row, file.ref.path, error.errno, str(error))
        self._fail(file.row, error.errno, "")

    def note_refused(self, row: int, path: bytes, code: int, detail: str) -> None:
        """Remember that a file cannot be had; also called for what the background found out."""
        self._refusals[row] = code
        self._shop.board.state[row] = State.REFUSED
        self._shop.catalog.set_states([row], State.REFUSED)
        if self._shop.tally.refuse(row):
            self._shop.reporter.event(Refused(path, code, detail))

    def _fail(self, row: int, code: int, detail: str) -> None:
        with self._lock:
            faults = self._waiting.pop(row, [])
        self._desk.refuse(row, code, faults, detail)

    def _stall(self, file: FileRow, error: SourceUnavailable) -> None:
        with self._stall_changed:
            if not self._closing:
                self._desk.lost(error)
            self._stalled.append(file)
            self._stall_changed.notify_all()

    def retry_stalled(self) -> None:
        """Until ``close``: try the files that wait for an unreachable source again, with growing pauses."""
        pause = FIRST_RETRY_S
        while True:
            with self._stall_changed:
                self._stall_changed.wait_for(lambda: self._stalled or self._closing)
                if self._closing:
                    return
                self._stall_changed.wait_for(lambda: self._closing, pause)
                files, self._stalled = self._stalled, []
            first, *rest = files
            self._restore_guarded(first)
            with self._stall_changed:
                if first in self._stalled:
                    self._stalled.extend(rest)
                    pause = min(pause * 2, LAST_RETRY_S)
                    rest = []
                else:
                    self._desk.found()
                    pause = FIRST_RETRY_S
            for file in rest:
                self._restore_guarded(file)
            self._refuse_overdue()

    def _refuse_overdue(self) -> None:
        """Tasks that have waited for the source longer than the user allowed get EIO; others go on waiting."""
        oldest = self._desk.oldest_ns
        with self._stall_changed:
            # Together, or a task that comes in between would wait in a list that nobody tries again.
            files, self._stalled = self._stalled, []
            overdue: dict[int, list[Fault]] = {}
            with self._lock:
                for file in files:
                    faults = self._waiting.get(file.row, [])
                    overdue[file.row] = [fault for fault in faults if fault.since_ns < oldest]
                    left = [fault for fault in faults if fault.since_ns >= oldest]
                    if left:
                        self._waiting[file.row] = left
                        self._stalled.append(file)
                    else:
                        self._waiting.pop(file.row, None)
        for row, faults in overdue.items():
            self._desk.refuse(row, errno.EIO, faults)

    @property
    def awaited(self) -> int:
        """How many files tasks wait for now."""
        return len(self._waiting)

    def waiting(self) -> list[Waiting]:
        """Who waits now, longest first."""
        with self._lock:
            faults = [fault for faults in self._waiting.values() for fault in faults]
        return self._desk.waiting([*faults, *self.patience.waiting()])

    def rest(self) -> None:
        """Called now and then: patient tasks go on where they can, and after a while without faults processors may sleep."""
        self.patience.look()
        if time.monotonic() - self._last_fault > _AWAKE_SECONDS:
            self._wakefulness.end()

    def stop(self) -> None:
        """The agent ends: leave files at the next piece; tasks that wait are the interceptor's from now on."""
        with self._stall_changed:
            self._closing = True
            self._stall_changed.notify_all()

    def close(self) -> None:
        """No fault comes any more: end the threads."""
        self._wakefulness.end()
        self._slow.shutdown()
        self._bulk.shutdown()
