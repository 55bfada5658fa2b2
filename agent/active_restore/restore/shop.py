"""The workshop: what every lane of a restore works with."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from active_restore.catalog import State

if TYPE_CHECKING:
    from active_restore.catalog import Catalog
    from active_restore.restore.board import Board
    from active_restore.restore.progress import Reporter
    from active_restore.restore.settle import Settler
    from active_restore.restore.tally import Tally


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
        return self.settler.failure is None and (states.count(State.LAID) > 0 or states.count(State.FILLED) > 0)
