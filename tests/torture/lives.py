"""Lives of restores under attack, one after the other: ``python -m tests.torture.lives KIND SEED BLOWS PLACE``.

``KIND`` of file system; until so many blows are dealt. The last line counts them. ``PLACE`` is a directory to work in.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from pathlib import Path

from tests.kernel.disks import mounted
from tests.torture.life import Life, fill
from tests.torture.stable import Stable, WarmRig


def main(arguments: list[str]) -> None:
    """See above."""
    kind, seed, blows, words = arguments
    place = Path(words)
    tree = place / "tree"
    tree.mkdir()
    fill(tree)
    dealt: Counter[str] = Counter()
    with mounted(kind, place / "disk") as disk:
        for number in itertools.count():
            with Stable() as stable:
                rig = WarmRig(place / f"l{number}", tree, stable)
                rig.place.mkdir()
                left = int(blows) - sum(dealt.values())
                life = Life(rig, disk.mount / f"life{number}", int(seed) + number, left)
                print(f"life {number}, seed {int(seed) + number}", flush=True)
                life.live()
                assert rig.end() == []
            dealt += life.attacker.dealt
            if sum(dealt.values()) >= int(blows):
                break
    print("counts", json.dumps({**dealt, "lives": number + 1}))


if __name__ == "__main__":
    main(sys.argv[1:])
