"""The OOM killer takes agents, layers and workers: whoever waits is served by the next one, and nobody sees a wrong byte."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from tests.kernel.waiting import wait_until
from tests.torture.blows import Prison
from tests.torture.life import fill
from tests.torture.users import Crowd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

MIB = 1 << 20
_FIRST_LIMIT = 20 * MIB
_STEP = 10 * MIB
_MAX_STARTS = 60


def test_too_little_memory(rig: Rig, ext4_target: Path) -> None:
    """All processes of a restore in a cgroup that is far too small; each time that the kernel kills it gets a little more."""
    fill(rig.tree)
    ext4_target.mkdir()
    crowd = Crowd(rig.tree, ext4_target, rig.place, random.Random(1))
    with Prison(f"active-restore-test-{os.getpid()}", _FIRST_LIMIT) as prison:
        rig.way_in = prison.way_in
        try:
            _until_done(rig, ext4_target, prison)
            assert crowd.see_off() == 0
        finally:
            crowd.end()
        assert prison.killed() > 1, "the kernel killed nobody: the first limit is too high"
        assert list(crowd.wrong()) == []
        rig.assert_clean(ext4_target)


def _until_done(rig: Rig, target: Path, prison: Prison) -> None:
    state = rig.place / "state"
    dead = 0
    for _ in range(_MAX_STARTS):
        again = state.exists() and any((place / "restore.json").exists() for place in state.iterdir())
        command = rig.start("resume", target) if again else rig.start("restore", rig.source, target)
        while not command.ended():
            wait_until(lambda: command.ended() or prison.killed() > dead, "an end, or another victim")  # noqa: B023
            prison.widen((prison.killed() - dead) * _STEP)
            dead = prison.killed()
        code, errors = command.end()
        if code == 0:
            return
        assert "Traceback" not in errors, errors
        prison.widen(_STEP)
    raise AssertionError(f"no agent comes to the end: {code} {errors}")
