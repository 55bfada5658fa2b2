"""How long a task waits for a placeholder that it opens and reads, in a process of its own; the source is in memory."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from bench.data import make_files, small_sizes
from bench.disk import quiet
from bench.restoring import command
from bench.row import Goal, percentile, row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.rig import Repository, Rig
    from bench.row import Row

_SMALL = "4-64 KiB"
_MIDDLE = "1 MiB"
_SMALLEST, _LARGEST = 4 << 10, 64 << 10
_PEER = "restored file"


class _Figure(NamedTuple):
    sizes: str
    share: int
    bound_ms: float


_GOALS = (_Figure(_SMALL, 50, 0.2), _Figure(_SMALL, 99, 1.0), _Figure(_MIDDLE, 99, 5.0))


def measure(rig: Rig) -> Iterator[Row]:
    """Idle (background paused) and busy (background running): p50 and p99."""
    root = rig.scratch / "demand"
    rig.say("making files of 1 MiB and small ones")
    # The names of the files that are probed come from the same seeded sizes as the files.
    sizes = small_sizes(rig.scale.small_files, seed=4)
    make_files(root / "small", sizes, seed=5)
    make_files(root / "middle", [1 << 20] * rig.scale.middle_files, seed=6)
    repository = rig.backup("demand", root)
    paths = {
        _SMALL: [f"small/{_name(n)}" for n, size in enumerate(sizes) if _SMALLEST <= size <= _LARGEST],
        _MIDDLE: [f"middle/{_name(n)}" for n in range(rig.scale.middle_files)],
    }
    quiet("rm", "-r", str(root))
    for state in ("idle", "busy"):
        found: dict[tuple[str, str], list[list[float]]] = {}
        for number in range(rig.scale.rounds):
            rig.say(f"demand, {state}, round {number + 1} of {rig.scale.rounds}")
            for key, times in _round(rig, repository, paths, seed=number, idle=state == "idle").items():
                found.setdefault(key, []).append(times)
        for figure in _GOALS:
            ours = [percentile(times, figure.share) for times in found[figure.sizes, "missing"] if times]
            peers = [percentile(times, figure.share) for times in found[figure.sizes, "restored"]]
            name = f"open and read {figure.sizes}, {state}, p{figure.share}"
            if ours:
                yield row(name, "ms", ours, (_PEER, peers), Goal("ours", "<=", figure.bound_ms))
    quiet("rm", "-r", str(repository.path))


def _name(number: int) -> str:
    return f"d{number // 100:05d}/f{number:06d}"


def _round(
    rig: Rig, repository: Repository, paths: dict[str, list[str]], *, seed: int, idle: bool
) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of each read: of what was missing just before it, and of the same files when all is restored."""
    probe = rig.program("probe")
    found: dict[tuple[str, str], list[float]] = {}
    _warm(repository)
    with rig.disk() as target:
        chosen = {sizes: _choose(target, names, rig.scale.reads, seed) for sizes, names in paths.items()}
        with rig.restoring(repository, target) as running:
            running.wait_for("ready")
            if idle:
                rig.output(*command("pause", str(target)))
            for sizes, files in chosen.items():
                found[sizes, "missing"] = _milliseconds(rig.output(probe, "missing", lines=files))
            if idle:
                rig.output(*command("continue", str(target)))
            running.finish()
        for sizes, files in chosen.items():
            found[sizes, "restored"] = _milliseconds(rig.output(probe, "read", lines=files))
    return found


def _warm(repository: Repository) -> None:
    """Read every pack once."""
    for pack in (repository.path / "data").glob("*/*"):
        pack.read_bytes()


def _choose(target: Path, names: list[str], count: int, seed: int) -> list[str]:
    return [str(target / name) for name in random.Random(seed).sample(names, min(count, len(names)))]


def _milliseconds(printed: str) -> list[float]:
    return [int(line) / 1e6 for line in printed.split()]
