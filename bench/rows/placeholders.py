"""Placeholders a second: laying against the same calls in C."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench.data import placeholder_list
from bench.row import Goal, row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Rig
    from bench.row import Row

_GOAL = Goal("peer/ours", ">=", 0.9)
_MILLION_GOAL = Goal("ours", "<=", 35.0)


def measure(rig: Rig) -> Iterator[Row]:
    """Seconds for ``placeholders`` files and scaled to a million."""
    count = rig.scale.placeholders
    lay = rig.program("lay")
    lines = [line for directory, files in placeholder_list(count) for line in (f"d {directory}", *_lines(files))]
    ours: list[float] = []
    peers: list[float] = []
    for number in range(rig.scale.rounds):
        rig.say(f"placeholders, round {number + 1} of {rig.scale.rounds}")
        with rig.disk(inodes=count * 5 // 4 + 1000) as target:
            peers.append(int(rig.output(lay, str(target), lines=lines)) / 1e9)
        with rig.disk(inodes=count * 5 // 4 + 1000) as target:
            printed = rig.output(sys.executable, "-P", "-m", "bench.placing", str(target), str(count))
            ours.append(int(printed) / 1e9)
    yield row(f"laying {count:,} placeholders", "s", ours, ("the same calls in C", peers), _GOAL)
    million = 1e6 / count
    name = "laying 1,000,000 placeholders" + ("" if million == 1 else " (scaled)")
    scaled = [seconds * million for seconds in ours]
    yield row(name, "s", scaled, ("the same calls in C", [seconds * million for seconds in peers]), _MILLION_GOAL)


def _lines(files: list[tuple[str, int, int]]) -> list[str]:
    return [f"f {name} {size} {mtime_ns}" for name, size, mtime_ns in files]
