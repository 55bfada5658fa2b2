"""Memory of the index, for a million blobs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench.row import Goal, row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Rig
    from bench.row import Row

_GOAL = Goal("ours", "<=", 60.0)


def measure(rig: Rig) -> Iterator[Row]:
    """MB for the index of ``blobs`` blobs, scaled to a million."""
    found: dict[str, list[float]] = {"compact": [], "naive": []}
    for number in range(rig.scale.rounds):
        rig.say(f"memory, round {number + 1} of {rig.scale.rounds}")
        for kind, megabytes in found.items():
            printed = rig.output(sys.executable, "-P", "-m", "bench.indexing", kind, str(rig.scale.blobs))
            megabytes.append(max(int(printed), 1) / rig.scale.blobs)
    yield row("index of 1,000,000 blobs", "MB", found["compact"], ("a dict of tuples", found["naive"]), _GOAL)
