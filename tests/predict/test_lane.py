"""Guesses during a real restore: what a program needs is there before it asks, counted and within limits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from active_restore.restore.progress import PredictionCount
from tests.kernel.rig import MIB, marked
from tests.kernel.tasks import read, run
from tests.kernel.waiting import wait_until
from tests.predict.programs import chain

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

# Slow enough to keep the background at its first files for minutes, fast enough for guesses of some KiB.
LIMIT = ("--limit", "200kB/s")
ORIGIN = "-Wl,-rpath,$ORIGIN"


@pytest.fixture
def slow_rig(rig: Rig) -> Rig:
    """A rig whose background has enough to do with files that nobody needs."""
    for number in range(2):
        (rig.tree / f"decoy{number}").write_bytes(os.urandom(32 * MIB))
    return rig


def counts(rig: Rig, target: Path, kind: str) -> PredictionCount:
    with rig.control(target) as client:
        return client.status().predictions.get(kind, PredictionCount())


def test_libraries_come_before_they_are_needed(slow_rig: Rig, target: Path) -> None:
    chain(slow_rig.place / "build", slow_rig.tree, ORIGIN)
    command = slow_rig.restore(target, *LIMIT)
    read(target / "program")
    wait_until(lambda: not marked(target / "libone.so") and not marked(target / "libtwo.so"), "the libraries are there")
    assert marked(target / "decoy0")
    assert run(target / "program") == b"two\n"
    wait_until(lambda: counts(slow_rig, target, "elf").hit == 2, "both were used")
    found = counts(slow_rig, target, "elf")
    assert (found.made, found.late, found.wasted) == (2, 0, 0)
    with slow_rig.control(target) as client:
        lanes = client.status().lanes
    assert (lanes["demand"].files, lanes["predicted"].files) == (1, 2)
    slow_rig.finish(command, target)
    slow_rig.verify(target)
