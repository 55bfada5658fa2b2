"""The end of a restore: look at every placeholder once more; nothing may be left that is marked and settled."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from active_restore.catalog import State
from active_restore.linux.files import sync_filesystem
from active_restore.marker import marker_value
from active_restore.placeholder import open_inode, read_marker, unmark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from active_restore.catalog import RawFile
    from active_restore.restore.shop import Workshop

_ROWS = 500


def sweep(shop: Workshop) -> list[int]:
    """Take markers from settled inodes where nobody saw them go (an interruption); returns rows that are still unrestored.

    A refused file that the user has deleted is not missing any more.
    """
    left: list[int] = []
    for row, _, size, _, _, handle in _files(shop):
        state = shop.board.state[row]
        if state == State.GONE:
            continue
        inode = open_inode(shop.mount_fd, handle)
        if inode is None:
            if state == State.REFUSED:
                shop.board.state[row] = State.GONE
                shop.tally.done([(row, size)])
            continue
        try:
            if read_marker(inode) != marker_value(shop.marker_prefix, row, handle):
                continue
            if state == State.SETTLED:
                unmark(inode)
            else:
                left.append(row)
        finally:
            os.close(inode)
    sync_filesystem(shop.mount_fd)
    return left


def _files(shop: Workshop) -> Iterator[RawFile]:
    rows = shop.board.maybe_marked()
    for start in range(0, len(rows), _ROWS):
        yield from shop.catalog.files(rows[start : start + _ROWS])
