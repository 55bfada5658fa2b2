"""What it costs that everything is durable before its marker goes: the same restore with and without its syncs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.row import Goal, row
from bench.rows.whole import small_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Rig
    from bench.row import Row

_GOAL = Goal("ours/peer", "<=", 1.4)


def measure(rig: Rig) -> Iterator[Row]:
    """Seconds of a whole restore of small files."""
    _, repository = small_tree(rig)
    nosync = rig.library("nosync")
    ours: list[float] = []
    peers: list[float] = []
    for number in range(rig.scale.rounds):
        rig.say(f"durability, round {number + 1} of {rig.scale.rounds}")
        for seconds, preload in ((ours, None), (peers, nosync)):
            with rig.disk() as target:
                rig.cold()
                with rig.restoring(repository, target, preload=preload) as running:
                    seconds.append(running.finish())
    name = f"durability of {rig.scale.small_files:,} small files, whole restore"
    yield row(name, "s", ours, ("the same without syncs", peers), _GOAL)
