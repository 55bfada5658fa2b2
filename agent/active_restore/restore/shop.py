"""The workshop: what every lane of a restore works with, opened from the catalog at its beginning and after interruptions."""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING, NamedTuple

from active_restore.catalog import Catalog, State
from active_restore.placeholder import open_inode
from active_restore.restore.board import Board
from active_restore.restore.settle import Filled, Settler
from active_restore.restore.tally import Tally
from active_restore.restore.writer import is_signed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from active_restore.restore.progress import Reporter


_OPEN = (State.LAID, State.FILLED, State.RANGED)


class Workshop(NamedTuple):
    """What every lane works with. ``mount_fd`` is the interceptor's passage."""

    mount_fd: int
    catalog: Catalog
    board: Board
    marker_prefix: bytes
    tally: Tally
    settler: Settler
    reporter: Reporter

    @property
    def is_open(self) -> bool:
        """Whether any row is neither settled, gone nor refused, and the disk does not fail."""
        states = bytes(self.board.state)
        return self.settler.failure is None and any(states.count(state) for state in _OPEN)


class Rows(NamedTuple):
    """What the interceptor says of rows, and is told: see these methods of ``intercept.base.Interceptor``."""

    settled: Callable[[Sequence[int]], None]
    completed: Callable[[Sequence[int]], Sequence[int]]
    unfilled: Callable[[int], None]


def open_shop(
    mount: int, catalog: Catalog, marker_prefix: bytes, interceptor: Rows, reporter: Reporter
) -> tuple[Workshop, array[int]]:
    """A workshop, and the rows that are still to be filled, in the order in which the source is read cheapest."""
    totals = catalog.totals()
    rows = catalog.row_count()
    board = Board.create(rows)
    tally = Tally(rows, totals.files, totals.bytes)
    board.state[:] = bytes([State.SETTLED]) * rows
    order = array("I")
    done: list[tuple[int, int]] = []
    for row, size, state in catalog.files_in_order():
        if state in (State.SETTLED, State.GONE):
            done.append((row, size))
            board.state[row] = state
        else:
            board.state[row] = State.LAID
            order.append(row)
    tally.done(done)
    board.note_marked([*order, *(row for row, _ in done)], marked=True)

    def settled(files: Sequence[tuple[int, int]]) -> None:
        interceptor.settled([row for row, _ in files])
        tally.done(files)

    shop = Workshop(mount, catalog, board, marker_prefix, tally, Settler(mount, catalog, board, settled), reporter)
    _keep_what_users_changed(shop, interceptor, order)
    return shop, order


def _keep_what_users_changed(shop: Workshop, interceptor: Rows, rows: Sequence[int]) -> None:
    """Files that a dead agent had completed, but not settled, and that were truncated by path since: settle them as they are.

    Nobody asks us before truncate(2) of a complete file, so filling it again would bring back what was cut off. All others
    are filled again: the same bytes, and better than to trust a disk that may have failed meanwhile. Who truncates one of
    those from now on is held like before it was complete; that comes first, and the look at its times after it.
    """
    for row in interceptor.completed(rows):
        shop.board.note_read(row)
        file = shop.catalog.file(row)
        inode = open_inode(shop.mount_fd, file.handle) if file is not None else None
        if file is None or inode is None:
            continue
        interceptor.unfilled(inode)
        found = os.fstat(inode)
        # Its filler put this time back before anybody was let in; one that was killed while it filled it again has signed.
        if found.st_mtime_ns == file.ref.mtime_ns or is_signed(found, file):
            os.close(inode)
            continue
        shop.board.state[row] = State.FILLED
        shop.settler.add(Filled(row, inode, file.ref.size))
