"""Progress of files that take long: it moves while they are written, and large ones are written side by side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from active_restore.model import Lane
from active_restore.restore.board import Board
from active_restore.restore.tally import Tally
from tests.kernel.rig import MIB, marked
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig


def test_progress_moves_within_a_file(rig: Rig, target: Path) -> None:
    size = 8 * MIB
    (rig.tree / "f").write_bytes(os.urandom(size))
    command = rig.restore(target, "--limit", "3MB/s")
    while not 0 < (event := command.until("progress"))["bytes_underway"] < size:
        pass
    assert event["bytes_done"] == event["files_done"] == 0
    assert event["eta_s"] > 0
    done = command.until("done")
    assert (done["files"], done["bytes"]) == (1, size)
    assert command.end()[0] == 0
    rig.verify(target)


def test_large_files_are_filled_side_by_side(rig: Rig, target: Path) -> None:
    size = 40 * MIB
    for name in ("a", "b"):
        (rig.tree / name).write_bytes(os.urandom(size))
    command = rig.restore(target, "--limit", "3MB/s", "--workers", "2")

    def half_there() -> bool:
        return all(marked(path) and MIB < path.stat().st_blocks * 512 < size for path in (target / "a", target / "b"))

    wait_until(half_there, "both are being filled")
    assert rig.run("limit", "0", target).returncode == 0
    assert command.end()[0] == 0
    rig.verify(target)


def test_the_rate_is_dealt_out_among_those_who_work() -> None:
    board = Board.create(1)
    board.workers = 4
    assert board.sharing() == 1
    for number in (0, 2, 3):
        board.note_working(number, working=True)
    assert board.sharing() == 3
    board.concurrency = 2
    assert board.sharing() == 2
    for number in (4, board.ranging_worker):
        board.note_working(number, working=True)
    assert board.sharing() == 4
    board.begin(4)
    assert board.sharing() == 3


def test_what_is_underway_is_counted_once() -> None:
    board = Board.create(1)
    board.workers = 2
    board.add_moved(0, 100)
    board.add_moved(1, 10)
    board.settled(0, 60)
    assert (board.moved(), board.underway()) == (110, 50)
    board.begin(0)
    assert (board.moved(), board.underway()) == (110, 10)


def test_a_file_that_a_task_waits_for_counts_while_it_is_written() -> None:
    tally, board = Tally(2, 2, 300), Board.create(2)

    def amount() -> tuple[int, int]:
        found = tally.amount(board, ranged=7)
        assert (found.eta_s is None) == (found.done == 300)
        return found.done, found.underway

    tally.writing(0, 50)
    tally.writing(0, 80)
    assert amount() == (0, 87)
    tally.writing(0, 0)
    assert amount() == (0, 7)
    tally.writing(0, 200)
    tally.filled(Lane.DEMAND, 1, 200, told=True)
    tally.filled(Lane.DEMAND, 1, 100)
    assert amount() == (0, 207)
    board.add_moved(0, 1000)
    assert amount() == (0, 300)
    tally.done([(0, 200)])
    assert amount() == (200, 100)
    tally.done([(1, 100)])
    assert amount() == (300, 0)
