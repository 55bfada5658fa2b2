"""What the background restored leaves the page cache where memory is scarce; what somebody asked for stays."""

from __future__ import annotations

import io
import os
import subprocess
from typing import TYPE_CHECKING

from active_restore.restore import frames
from active_restore.restore.board import Board
from active_restore.restore.worker import Syncer, Upstream
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.disks import Disk

_FILES = 6
_SIZE = 256 << 10


def cached(path: Path) -> int:
    """Bytes of a file that are in memory."""
    out = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES", path], capture_output=True, check=True)
    return int(out.stdout)


def settled(ext4: Disk, *, dropping: bool) -> list[int]:
    """Bytes in memory of files that were made durable and unmarked; the last one was asked for meanwhile."""
    paths = [ext4.mount / f"cached{number}" for number in range(_FILES)]
    for path in paths:
        path.write_bytes(os.urandom(_SIZE))
    board = Board.create(_FILES)
    board.dropping = dropping
    board.urgent[_FILES - 1] = 1
    mount = os.open(ext4.mount, os.O_RDONLY)
    told = io.BytesIO()
    syncer = Syncer(mount, Upstream(told), board, 0)
    syncer.add([(row, os.open(path, os.O_RDONLY), _SIZE) for row, path in enumerate(paths)])
    syncer.close()
    syncer.run()
    told.seek(0)
    assert frames.read_frame(told) == [frames.DURABLE, list(range(_FILES))]
    syncer.unmark(list(range(_FILES)))
    os.close(mount)
    left = [cached(path) for path in paths]
    for path in paths:
        path.unlink()
    return left


def test_dropped_but_for_what_was_asked_for(ext4: Disk) -> None:
    wanted = [0] * (_FILES - 1) + [_SIZE]
    # More than once: somebody else on this machine may empty the page cache just then.
    wait_until(lambda: settled(ext4, dropping=True) == wanted, "only what was asked for is in memory")


def test_kept_while_there_is_room(ext4: Disk) -> None:
    wait_until(lambda: settled(ext4, dropping=False) == [_SIZE] * _FILES, "all is in memory")
