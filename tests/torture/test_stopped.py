"""Processes of a restore that somebody stops (SIGSTOP) and forgets: the agent lets them go on, so nobody waits for ever."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.kernel.tasks import Task, read
from tests.kernel.waiting import wait_until
from tests.restore.agents import begun, kill, make
from tests.torture.blows import KEEPER, STANDBY, WORKER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

MIB = 1 << 20


def stop(rig: Rig, name: str) -> None:
    for pid in rig.processes(name):
        os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize(("stopped", "killed"), [(KEEPER, ""), (STANDBY, KEEPER), (KEEPER, STANDBY)], ids=repr)
def test_stopped_keepers(held_rig: Rig, ext4_target: Path, stopped: str, killed: str) -> None:
    first, second, *_ = make(held_rig.tree)
    command = held_rig.hold(ext4_target)
    stop(held_rig, stopped)
    if killed:
        held_rig.kill(killed)
    assert read(ext4_target / first) == (held_rig.tree / first).read_bytes()
    stop(held_rig, stopped)
    held_rig.finish(command, ext4_target)
    assert read(ext4_target / second) == (held_rig.tree / second).read_bytes()
    held_rig.verify(ext4_target)


def test_stopped_keeper_of_a_dead_agent(held_rig: Rig, ext4_target: Path) -> None:
    first, *_ = make(held_rig.tree)
    kill(held_rig.hold(ext4_target))
    stop(held_rig, "ar-")
    with Task("cat", ext4_target / first) as task:
        task.held()
        again = held_rig.resume(ext4_target)
        assert task.output() == (held_rig.tree / first).read_bytes()
    held_rig.finish(again, ext4_target)
    held_rig.verify(ext4_target)


def test_stopped_worker_in_the_middle_of_a_file(held_rig: Rig, ext4_target: Path) -> None:
    make(held_rig.tree, 2, 12 * MIB)
    command = held_rig.hold(ext4_target)
    with held_rig.control(ext4_target) as client:
        client.limit(4 * MIB)
        client.promote([b"f0000", b"f0001"])
    wait_until(lambda: begun(ext4_target), "a file is half filled")
    stop(held_rig, WORKER)
    for name in ("f0000", "f0001"):
        assert read(ext4_target / name) == (held_rig.tree / name).read_bytes()
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)
