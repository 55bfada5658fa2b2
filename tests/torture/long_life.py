"""One restore that lives through many blows while it is ready: ``python -m tests.torture.long_life SEED BLOWS PLACE``.

Where the beginning of a restore takes longest (BPF on an emulated processor) this deals many more blows than several lives do
(``lives``). ``PLACE`` is a directory on the file system under test. The last line counts the blows.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.rig import INTERCEPTORS, add_decoys
from tests.kernel.waiting import DEADLINE_S, wait_until
from tests.torture.life import KIB, Life
from tests.torture.stable import Stable, WarmRig

if TYPE_CHECKING:
    from tests.cli.machine import Command


class LongLife(Life):
    """Its background has nothing that it may do, so that it goes on until it is told to end."""

    def _begin(self) -> Command:
        self._guarded = False
        return self._start("restore", self._rig.source, self._target, "--limit", "1", "--interceptor", INTERCEPTORS[0])

    def _first_blow(self, agent: Command) -> None:
        self._let_live(agent)

    def _let_live(self, agent: Command) -> None:
        wait_until(lambda: agent.ended() or agent.seen("ready"), "it is ready", DEADLINE_S)
        self.attacker.pause(1.0)


def main(arguments: list[str]) -> None:
    """See above."""
    seed, blows, words = arguments
    place = Path(words)
    tree = place / "tree"
    tree.mkdir()
    add_decoys(tree)
    dice = random.Random(6)
    for number in range(40):
        (tree / f"f{number:03}").write_bytes(dice.randbytes(dice.choice((10, 4 * KIB, 40 * KIB, 200 * KIB))))
    with Stable() as stable:
        rig = WarmRig(place / "rig", tree, stable)
        rig.place.mkdir()
        life = LongLife(rig, place / "target", int(seed), int(blows))
        life.live()
        assert rig.end() == []
    print("counts", json.dumps(life.attacker.dealt))


if __name__ == "__main__":
    main(sys.argv[1:])
