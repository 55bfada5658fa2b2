"""Demand goes first, and the background goes on."""

from __future__ import annotations

import os
import threading
import time

import pytest

from active_restore.restore.board import Board
from active_restore.restore.pace import Pace, Stopped


def test_endless_demand_starves_nobody() -> None:
    board = Board.create(2)
    board.workers = 1
    board.demand_ns = time.monotonic_ns() + 10**15
    pace = Pace(board, 0)
    for _ in range(3):
        pace.wait(0, 1000)
    assert board.demand_ns > time.monotonic_ns()


def test_a_wanted_file_gives_way_to_nobody() -> None:
    board = Board.create(2)
    board.workers = 1
    board.paused = True
    board.demand_ns = time.monotonic_ns() + 10**15
    board.urgent[1] = 1
    Pace(board, 0).wait(1, 1000)


def test_an_agent_that_ends_waits_for_no_demand() -> None:
    board = Board.create(1)
    board.stopping = True
    with pytest.raises(Stopped):
        Pace(board, 0).wait(0, 1000)


def test_a_meek_worker_is_as_nice_as_can_be_but_not_to_who_waits() -> None:
    """In a thread of its own, whose priority is nobody else's."""
    board = Board.create(2)
    board.workers = 1
    nices = []

    def work() -> None:
        pace = Pace(board, 0)
        usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        for meek, urgent in ((True, False), (True, True), (True, False), (False, False)):
            board.meek, board.urgent[0] = meek, urgent
            pace.wait(0, 1000)
            nices.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) - usual)
        assert usual < 19

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [nice > 0 for nice in nices] == [True, False, True, False]
