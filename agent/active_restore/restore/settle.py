"""Settle: make filled content durable, note it in the catalog, and only then take the marker away.

Group commit: one syncfs(2) and one transaction for many files. A crash between any two steps finds either the marker
(the file is restored again, nobody has written to it) or the note in the catalog (only the marker is removed).

The kernel forgets a page that it could not write and tells of it once: a second sync that succeeds proves nothing. So the first
that fails ends all settling of this agent; the next one fills again what has a marker.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from active_restore.catalog import Catalog, State
from active_restore.linux.files import own_description, sync_filesystem
from active_restore.placeholder import unmark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from active_restore.restore.board import Board

# Flushing a file system slows down those who use it (measured: the p99 of faults doubles), so it waits for a pause between
# faults, though not for ever.
_QUIET_SECONDS = 0.5
_LONGEST_SECONDS = 2.0
_BATCH_FILES = 4096
# Measured on ext4: below this, one fdatasync(2) each costs less than flushing the whole file system.
_SINGLES = 4


class Filled(NamedTuple):
    """A file whose content is complete; ``inode`` is a descriptor of ``open_inode`` that settling closes; ``size`` in bytes."""

    row: int
    inode: int
    size: int


def forget_pages(inode: int) -> None:
    """Give the room of a durable file in the page cache to others: nobody has asked for it. Mapped pages stay."""
    os.posix_fadvise(inode, 0, 0, os.POSIX_FADV_DONTNEED)


class Settler:
    """Settles what the demand lane filled, a batch at a time, in a thread of its own (``run``)."""

    def __init__(
        self, mount_fd: int, catalog: Catalog, board: Board, on_settled: Callable[[Sequence[tuple[int, int]]], None]
    ) -> None:
        # Nobody else hears for us what became of our writes.
        self._mount = own_description(mount_fd)
        self._witness = own_description(mount_fd)
        self._asking = threading.Lock()
        self._catalog = catalog
        self._board = board
        self._on_settled = on_settled
        self._changed = threading.Condition()
        self._pending: list[Filled] = []
        self._inodes: dict[int, int] = {}
        self._syncing = 0
        self._busy = False
        self._closing = False
        self._hurried = False
        self._adopted = False
        self.failure: OSError | None = None

    def fail(self, error: OSError) -> None:
        """Something could not be made durable: nothing is settled from now on, so nobody need fill any more."""
        with self._changed:
            self.failure = self.failure or error
        self._board.stopping = True

    @property
    def doubtful(self) -> list[int]:
        """Rows whose content may be lost with the page cache, because the disk failed: readers must be held again."""
        return self._board.rows_in(State.FILLED, State.RANGED) if self.failure else []

    def add(self, filled: Filled, *, adopted: bool = False) -> None:
        """Settle this soon. ``adopted``: others wrote it, and its descriptor may not be told of what went wrong before."""
        with self._changed:
            self._pending.append(filled)
            if not adopted:
                self._inodes.setdefault(filled.row, filled.inode)
            self._adopted |= adopted
            # Only when there is something to do: every wake-up takes the interpreter from the threads that serve faults.
            if len(self._pending) == 1 or len(self._pending) >= _BATCH_FILES:
                self._changed.notify_all()

    def run(self) -> None:
        """Until ``close``; then what is pending is settled and it returns."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                if not self._pending:
                    return
                self._linger()
                batch, self._pending = self._pending, []
                adopted, self._adopted = self._adopted, False
                self._busy = True
            try:
                if self.failure is None:
                    self._settle(batch, each=len(batch) <= _SINGLES and not adopted)
            except OSError as error:
                # The disk failed: the markers stay, so a resume restores these files again.
                self.fail(error)
            finally:
                with self._changed:
                    for filled in batch:
                        if self._inodes.get(filled.row) == filled.inode:
                            del self._inodes[filled.row]
                        with contextlib.suppress(OSError):
                            os.close(filled.inode)
                    self._busy = False
                    self._changed.notify_all()

    def _linger(self) -> None:
        """Wait until nobody has added anything for a moment. Only with ``_changed`` held."""
        end = time.monotonic() + _LONGEST_SECONDS
        known = 0
        while known != len(self._pending) and time.monotonic() < end:
            known = len(self._pending)
            if self._changed.wait_for(self._must_go_on, _QUIET_SECONDS):
                return

    def _must_go_on(self) -> bool:
        return self._closing or self._hurried or len(self._pending) >= _BATCH_FILES

    def _settle(self, batch: list[Filled], *, each: bool) -> None:
        if each:
            self._syncing += 1
            for filled in batch:
                os.fdatasync(filled.inode)
            self._syncing -= 1
        else:
            sync_filesystem(self._mount)
        rows = [filled.row for filled in batch]
        self._catalog.set_states(rows, State.SETTLED)
        unmarked = []
        for filled in batch:
            self._board.state[filled.row] = State.SETTLED
            # Over its quota a file system may refuse even that: the sweep at the end tries again.
            with contextlib.suppress(OSError):
                unmark(filled.inode)
                unmarked.append(filled.row)
        self._board.note_marked(unmarked, marked=False)
        self._on_settled([(filled.row, filled.size) for filled in batch])

    def flush(self) -> None:
        """Wait until nothing is pending."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._pending and not self._busy)
            self._hurried = False

    def close(self) -> None:
        """Settle the rest and end ``run``."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def give_back(self) -> None:
        """When ``run`` has ended, and no writer comes any more: its descriptors."""
        os.close(self._mount)
        os.close(self._witness)

    def settle_for_writer(self, row: int, inode: int, *, ours: bool) -> None:
        """Content durable, marker gone, and that durable, too: only then may a writer go on (design, invariant 3).

        ``ours``: we have just written it, and the descriptor is older than that. Raises ``OSError``; then nothing is settled
        any more, except where the file system had no room for taking the marker away: nothing is lost by that.
        """
        with self._failing():
            os.fdatasync(inode) if ours else self._ask(row, inode)
        unmark(inode)
        with self._failing():
            os.fsync(inode)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fail(error)
            raise

    def _ask(self, row: int, inode: int) -> None:
        """Make durable what somebody else filled: this descriptor is not told of a failure that anybody was told of before."""
        with self._changed:
            known = os.dup(self._inodes[row]) if row in self._inodes else -1
        try:
            os.fdatasync(inode if known < 0 else known)
        finally:
            if known >= 0:
                os.close(known)
        # Told may have been: we or a worker, a moment ago, or a user who had it open and called fsync(2).
        told = self._syncing or self._board.syncing or (known < 0 and self._board.was_read(row))
        with self._asking:
            if told and self.failure is None:
                try:
                    sync_filesystem(self._witness)
                except OSError as error:
                    self.fail(error)
            if self.failure is not None:
                raise OSError(self.failure.errno, self.failure.strerror)
