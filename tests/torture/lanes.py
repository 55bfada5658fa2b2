"""Long attacks side by side: each a process of its own that ends with a line of counts, or says what broke."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from tests.cli.machine import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LANE_S = 1500
_TOLD_BYTES = 4000


class Lane(NamedTuple):
    """What ``python -m MODULE WORDS... PLACE`` is to do; ``name`` is that of its directory."""

    name: str
    module: str
    words: tuple[str, ...]


def side_by_side(lanes: Sequence[Lane], place: Path) -> Counter[str]:
    """Run all; the sum of their counts. Fails with the last words of one that breaks."""
    place.mkdir()
    # They are in each other's way: what takes long is not what hangs.
    env = {**os.environ, "ACTIVE_RESTORE_TEST_DEADLINE": "240"}
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        started = []
        for lane in lanes:
            room = place / lane.name
            room.mkdir()
            argv = [sys.executable, "-m", lane.module, *lane.words, str(room)]
            log = stack.enter_context(open(place / f"{lane.name}.log", "w+"))
            process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append((lane, process, log))
        for lane, process, log in started:
            try:
                code = process.wait(_LANE_S)
            except BaseException as error:
                # Whatever ends it, pytest's own limit of time among others.
                log.seek(0)
                error.add_note(f"{lane!r}\n{log.read()[-_TOLD_BYTES:]}")
                raise
            log.seek(0)
            said = log.read().splitlines()
            assert code == 0, "\n".join([repr(lane), "\n".join(said)[-_TOLD_BYTES:]])
            counts += Counter(json.loads(said[-1].removeprefix("counts ")))
    subprocess.run(["rm", "-rf", place], check=True)
    return counts
