"""Agents, keepers, workers and layers that are killed and stopped at seeded random moments: every invariant holds.

In CI 1,000 processes are hit (TORTURE_BLOWS), in lives of restores side by side (``lives``) with readers and a writer at work.
``make torture`` runs the same for as long as is wished: TORTURE_SECONDS; TORTURE_SEED repeats a choice of blows.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.torture.lanes import Lane, side_by_side

if TYPE_CHECKING:
    from pathlib import Path

_BLOWS = int(os.environ.get("TORTURE_BLOWS", "1000"))
_LANES = ("ext4", "xfs", "btrfs") * 2
_SEEDS_A_LANE = 1000


@pytest.mark.timeout(0)
def test_lives_under_attack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("TORTURE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    end = time.monotonic() + float(os.environ.get("TORTURE_SECONDS", "0"))
    blows = str(-(-_BLOWS // len(_LANES)))
    dealt: Counter[str] = Counter()
    for number in itertools.count():
        if number and time.monotonic() > end:
            break
        lanes = [
            Lane(str(place), "tests.torture.lives", (kind, str(seed + place * _SEEDS_A_LANE), blows))
            for place, kind in enumerate(_LANES)
        ]
        dealt += side_by_side(lanes, tmp_path / str(number))
        with capsys.disabled():
            print(f"\nTORTURE_SEED={seed}: {dealt.total() - dealt['lives']} blows so far: {dict(dealt)}", end="", flush=True)
        seed += len(_LANES) * _SEEDS_A_LANE
    assert dealt.total() - dealt["lives"] >= _BLOWS
