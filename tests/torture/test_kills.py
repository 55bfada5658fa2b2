"""Agents, keepers, workers and layers that are killed and stopped at seeded random moments: every invariant holds.

``make torture`` runs the same for as long as is wished: TORTURE_SECONDS; TORTURE_SEED repeats a choice of blows.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.torture.life import Life, fill

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.kernel.disks import Disk
    from tests.kernel.rig import Rig

_LIVES = int(os.environ.get("TORTURE_LIVES", "8"))
_KINDS = ("ext4", "xfs", "btrfs")


def test_lives_under_attack(rig: Rig, disks: Callable[[str], Disk], capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("TORTURE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    seconds = float(os.environ.get("TORTURE_SECONDS", "0"))
    fill(rig.tree)
    dealt: Counter[str] = Counter()
    end = time.monotonic() + seconds
    for number in itertools.count():
        if number >= _LIVES and time.monotonic() > end:
            break
        target = disks(_KINDS[number % 3]).mount / f"life{number}"
        life = Life(rig, target, seed + number)
        with capsys.disabled():
            print(f"\nlife {number}: TORTURE_SEED={seed + number}", end="", flush=True)
        life.live()
        dealt += life.attacker.dealt
        with capsys.disabled():
            print(f": {sum(life.attacker.dealt.values())} blows", end="", flush=True)
    with capsys.disabled():
        print(f"\n{number} lives, {sum(dealt.values())} blows:", dict(dealt))
