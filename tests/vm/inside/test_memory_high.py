"""A cgroup of version 2 that slows down whoever wants more memory: agent, tasks and a flood of dirty pages in one of them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.kernel.fixtures import held_rig, rig
from tests.kernel.tasks import Task, run
from tests.restore.agents import make
from tests.torture.blows import Prison
from tests.torture.test_out_of_memory import FLOOD

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

__all__ = ["held_rig", "rig"]
MIB = 1 << 20
# What BPF needs to be compiled is part of it: with less than that the agent itself would crawl.
_ROOM_BYTES = 400 * MIB
_FLOOD_MIB = 500


@pytest.mark.ci("6.12")
def test_all_are_slowed_down_together(held_rig: Rig, disk: Path) -> None:
    names = make(held_rig.tree, 40, 100_000)
    target = disk / "throttled"
    with Prison(f"active-restore-test-{os.getpid()}", _ROOM_BYTES, throttled=True) as prison:
        held_rig.way_in = prison.way_in
        command = held_rig.hold(target)
        argv = (*prison.way_in, sys.executable, "-S", "-E", "-c", FLOOD, str(_FLOOD_MIB), disk / "flood")
        with Task(*argv) as flood:
            assert flood.line() == b"here\n"
            for name in names[::10]:
                assert run(*prison.way_in, "cat", target / name) == (held_rig.tree / name).read_bytes()
            flood.output()
        held_rig.finish(command, target)
        assert prison.pressed(), "there was too much room"
        assert not prison.killed()
    (disk / "flood").unlink()
    held_rig.verify(target)
