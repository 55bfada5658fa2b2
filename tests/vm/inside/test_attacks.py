"""Attacks of ``tests/torture`` on restores that BPF holds: kills (in CI, too), and power cuts, on an emulated processor.

ACTIVE_RESTORE_BLOWS and ACTIVE_RESTORE_CUTS say how many, ACTIVE_RESTORE_SEED repeats a choice.
"""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.torture.lanes import Lane, side_by_side
from tests.torture.test_power_cuts import MODULE
from tests.vm.inside.territory import load_modules

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator
    from pathlib import Path

_BLOWS = os.environ.get("ACTIVE_RESTORE_BLOWS", "4")
_BLOWS_IN_ONE_LIFE = 12
_CUTS = os.environ.get("ACTIVE_RESTORE_CUTS", "4")
_SEED = os.environ.get("ACTIVE_RESTORE_SEED") or str(random.SystemRandom().randrange(1, 1 << 31))


@pytest.fixture
def place(disk: Path) -> Iterator[Path]:
    """Not in the memory of the machine, which is small."""
    place = disk / "attacks"
    yield place
    shutil.rmtree(place, ignore_errors=True)


def _attacked(module: str, words: tuple[str, ...], place: Path) -> Counter[str]:
    print(f"seed {_SEED}")
    counts = side_by_side([Lane("lane", module, words)], place)
    print(dict(counts))
    return counts


def test_lives_under_attack(place: Path, disk: Path) -> None:
    counts = _attacked("tests.torture.lives", (disk.name, _SEED, _BLOWS), place)
    assert counts.total() - counts["lives"] >= int(_BLOWS)


@pytest.mark.ci("6.12")
def test_one_life_of_many_blows(place: Path) -> None:
    """A restore begins with a minute of compiling here, and goes on after a death within seconds: one is hit many times."""
    blows = max(int(_BLOWS), _BLOWS_IN_ONE_LIFE)
    assert _attacked("tests.torture.long_life", (_SEED, str(blows)), place).total() >= blows // 3


@pytest.mark.parametrize("source", ["dir", "restic"])
def test_power_cuts(place: Path, disk: Path, source: str) -> None:
    load_modules("fuse")
    assert _attacked(MODULE, (disk.name, _SEED, _CUTS, "1", source), place)["cuts"] == int(_CUTS)
