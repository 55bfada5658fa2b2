"""Whole restores, from the start of the process to its end, with an empty page cache."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from bench.data import make_big_files, make_files, small_sizes
from bench.disk import quiet
from bench.row import Goal, row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.rig import Repository, Rig
    from bench.row import Row

_RESTIC = "restic restore"
_DURABLE = "restic restore, then sync"
_GOALS = {1: Goal("peer/ours", ">=", 1.5), 2: Goal("peer/ours", ">=", 2.0)}
# The second tree has a tenth of the files.
_SHARE = 10
_READY_GOAL = Goal("ours", "<=", 35.0)
_MEMORY_GOAL = Goal("ours", "<=", 200)

Times = dict[str, list[float]]


def small_tree(rig: Rig) -> tuple[Path, Repository]:
    """Many small files and their backup; made once a run."""
    root = rig.scratch / "small"
    if not root.exists():
        rig.say(f"making {rig.scale.small_files:,} small files")
        make_files(root, small_sizes(rig.scale.small_files, seed=1), seed=2)
    return root, rig.backup("small", root)


def measure_small(rig: Rig) -> Iterator[Row]:
    """Small files: restic, tar and cp as peers."""
    root, repository = small_tree(rig)
    archive = rig.scratch / "small.tar"
    quiet("tar", "--create", "--file", str(archive), "--directory", str(root), ".")
    few_files = rig.scale.small_files // _SHARE
    make_files(rig.scratch / "few", small_sizes(few_files, seed=8), seed=9)
    few = rig.backup("few", rig.scratch / "few")
    times: Times = defaultdict(list)
    few_times: Times = defaultdict(list)
    for number in range(rig.scale.rounds):
        rig.say(f"small files, round {number + 1} of {rig.scale.rounds}")
        _round(rig, repository, times)
        with rig.disk() as target:
            rig.cold()
            few_times["restic"].append(rig.restic_restore(few, target))
        with rig.disk() as target:
            rig.cold()
            _active(rig, few, target, 2, few_times)
        with rig.disk() as target:
            rig.cold()
            times["tar"].append(rig.timed("tar", "--extract", "--file", str(archive), "--directory", str(target)))
        with rig.disk() as target:
            rig.cold()
            times["cp"].append(rig.timed("cp", "--archive", f"{root}/.", str(target)))
    archive.unlink()
    files = rig.scale.small_files
    quiet("rm", "-r", str(rig.scratch / "few"), str(few.path))
    yield from _rows(f"{files:,} small files", times)
    tar = ("tar x", times["tar"])
    yield row(f"{files:,} small files, reader only, 2 workers", "s", times["reader2"], tar, Goal("peer/ours", ">=", 0.9))
    yield row(f"{files:,} small files, 2 workers", "s", times["active2"], tar)
    yield row(f"{files:,} small files, ready", "s", times["ready"], (_RESTIC, times["restic"]))
    yield row(f"{files:,} small files, ready", "s", times["ready"], ("cp -a", times["cp"]))
    scaled = _scaled(few_times["ready"], few_files, times["ready"], files)
    peers = _scaled(few_times["restic"], few_files, times["restic"], files)
    yield row("ready with 1,000,000 files (scaled)", "s", scaled, (_RESTIC, peers), _READY_GOAL)
    yield row(
        "agent's memory for each file, ready",
        "B",
        [v / files for v in times["rss"]],
        ("at its peak", [v / files for v in times["peak"]]),
        _MEMORY_GOAL,
    )


def _scaled(few_s: list[float], few: int, many_s: list[float], many: int) -> list[float]:
    """Seconds for a million files along the line through two sizes: a start costs the same whatever follows."""
    return [max(a + (b - a) / (many - few) * (1e6 - few), b) for a, b in zip(few_s, many_s, strict=False)]


def measure_big(rig: Rig) -> Iterator[Row]:
    """Big files: restic as peer."""
    scale = rig.scale
    root = rig.scratch / "big"
    rig.say("making big files")
    make_big_files(root, scale.big_files, scale.big_size, seed=3)
    repository = rig.backup("big", root)
    quiet("rm", "-r", str(root))
    times: Times = defaultdict(list)
    for number in range(scale.rounds):
        rig.say(f"big files, round {number + 1} of {scale.rounds}")
        _round(rig, repository, times)
    quiet("rm", "-r", str(repository.path))
    yield from _rows(f"{scale.big_files} files of {scale.big_size >> 20} MiB", times)


def _round(rig: Rig, repository: Repository, times: Times) -> None:
    with rig.disk() as target:
        rig.cold()
        seconds = rig.restic_restore(repository, target)
        times["restic"].append(seconds)
        times["durable"].append(seconds + rig.timed("sync", "--file-system", str(target)))
    for workers in (1, 2):
        with rig.disk() as target:
            rig.cold()
            _active(rig, repository, target, workers, times)
        with rig.disk() as target:
            rig.cold()
            taken = rig.timed_python("bench.reading", repository.source, str(target), str(workers))
            times[f"reader{workers}"].append(taken)


def _active(rig: Rig, repository: Repository, target: Path, workers: int, times: Times) -> None:
    with rig.restoring(repository, target, "--workers", str(workers)) as running:
        running.wait_for("planned")
        before = running.memory()["VmRSS"]
        running.wait_for("ready")
        after = running.memory()
        times[f"active{workers}"].append(running.finish())
    times["ready"].append(running.at["ready"])
    times["rss"].append(max(after["VmRSS"] - before, 1))
    times["peak"].append(max(after["VmHWM"] - before, 1))


def _rows(what: str, times: Times) -> Iterator[Row]:
    restic = (_RESTIC, times["restic"])
    for count, goal in _GOALS.items():
        workers = f"{count} worker{'s'[: count - 1]}"
        yield row(f"{what}, reader only, {workers}", "s", times[f"reader{count}"], restic, goal)
        yield row(f"{what}, {workers}", "s", times[f"active{count}"], restic, goal)
        yield row(f"{what}, {workers}", "s", times[f"active{count}"], (_DURABLE, times["durable"]))
