"""What the guard costs files of others on the same file system: opens while a restore runs against opens without one."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bench.restoring import command
from bench.row import Goal, row
from bench.rows.whole import small_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.rig import Rig
    from bench.row import Row

_FIRST_GOAL = Goal("ours-peer", "<=", 15.0)
_LATER_GOAL = Goal("ours/peer", "<=", 1.05)
_FILES = 10_000
_LATER_TIMES = 5


def measure(rig: Rig) -> Iterator[Row]:
    """Microseconds of the first open of each file, and of the later ones."""
    _, repository = small_tree(rig)
    first: dict[str, list[float]] = {"guarded": [], "free": []}
    later: dict[str, list[float]] = {"guarded": [], "free": []}
    for number in range(rig.scale.rounds):
        rig.say(f"other files, round {number + 1} of {rig.scale.rounds}")
        with rig.disk() as disk:
            files = {which: _files(disk / which, min(_FILES, rig.scale.small_files)) for which in first}
            opens(rig, files["free"], first["free"], later["free"])
            target = disk / "target"
            with rig.restoring(repository, target) as running:
                running.wait_for("ready")
                rig.output(*command("pause", str(target)))
                opens(rig, files["guarded"], first["guarded"], later["guarded"])
                rig.output(*command("continue", str(target)))
                running.finish()
    name = "other files on the same file system, open"
    yield row(f"{name}, first", "us", first["guarded"], ("no restore", first["free"]), _FIRST_GOAL)
    yield row(f"{name}, later", "us", later["guarded"], ("no restore", later["free"]), _LATER_GOAL)


def _files(directory: Path, count: int) -> list[str]:
    directory.mkdir()
    paths = [directory / str(number) for number in range(count)]
    for path in paths:
        path.touch()
    return [str(path) for path in paths]


def opens(
    rig: Rig, files: list[str], first: list[float], later: list[float], between: Callable[[], None] | None = None
) -> None:
    """The median microseconds of the first open of each file, and of later ones."""
    probe = rig.program("probe")
    first.append(median_us(rig.output(probe, "open", lines=files)))
    if between is not None:
        between()
    later.append(statistics.median(median_us(rig.output(probe, "open", lines=files)) for _ in range(_LATER_TIMES)))


def median_us(printed: str) -> float:
    """Of what ``probe`` prints."""
    return statistics.median(int(line) / 1e3 for line in printed.split())
