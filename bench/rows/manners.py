"""What a background restore costs those who use the same disk, and what yielding costs a restore that is alone."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from bench.data import make_big_files
from bench.disk import quiet
from bench.orphans import end_orphans
from bench.restoring import command
from bench.row import Goal, row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.rig import Repository, Rig
    from bench.row import Row

# The restore has begun before fio comes, and what it wrote until then is on its way to the disk.
_HEAD_START_S = 2.0
_RAMP_S = 3
_FILE_MIB = 256
_PEACE = Goal("ours/peer", "<=", 1.10)
_ALONE = Goal("ours/peer", "<=", 1.05)


class Work(NamedTuple):
    """What fio does, one request after the other; ``figure`` is where its p99 is found in the answer."""

    name: str
    options: tuple[str, ...]
    figure: tuple[str, str]


_WORKS = (
    Work("random reads of 4 KiB", ("--rw=randread", "--bs=4k", "--direct=1"), ("read", "clat_ns")),
    Work("writes of 8 KiB, each made durable", ("--rw=randwrite", "--bs=8k", "--fdatasync=1"), ("sync", "lat_ns")),
)


def measure(rig: Rig) -> Iterator[Row]:
    """fio on the disk that is being restored: alone, beside us, beside restic; then us alone, yielding and not."""
    root = rig.scratch / "manners"
    rig.say("making big files")
    make_big_files(root, rig.scale.big_files, rig.scale.big_size, seed=8)
    repository = rig.backup("manners", root)
    quiet("rm", "-r", str(root))
    for work in _WORKS:
        times: dict[str, list[float]] = defaultdict(list)
        for number in range(rig.scale.rounds):
            rig.say(f"{work.name}, round {number + 1} of {rig.scale.rounds}")
            for who in ("alone", "active-restore", "restic"):
                times[who].append(_latency_us(rig, repository, work, who))
        name = f"p99 of {work.name}, during a restore"
        yield row(name, "us", times["active-restore"], ("nobody restores", times["alone"]), _PEACE)
        yield row(name, "us", times["active-restore"], ("during restic restore", times["restic"]))
    yield from _alone(rig, repository)
    quiet("rm", "-r", str(repository.path))


def _latency_us(rig: Rig, repository: Repository, work: Work, who: str) -> float:
    with rig.disk() as target:
        _bypass_page_cache(target)
        fio = ["fio", "--name=work", f"--filename={target}/work", f"--size={_FILE_MIB}M"]
        quiet(*fio, "--rw=write", "--bs=1M", "--end_fsync=1")
        rig.cold()
        with _restoring_for_ever(rig, repository, target, who):
            seconds = rig.scale.fio_seconds
            steady = (f"--runtime={seconds}", f"--ramp_time={min(_RAMP_S, seconds)}", "--time_based", "--thinktime=500")
            answer = json.loads(quiet(*fio, *work.options, *steady, "--output-format=json"))
    kind, clock = work.figure
    return float(answer["jobs"][0][kind][clock]["percentile"]["99.000000"]) / 1000


def _bypass_page_cache(target: Path) -> None:
    """A loop device that reads its image from memory would be no disk."""
    device = quiet("findmnt", "--noheadings", "--output", "SOURCE", str(target)).strip()
    quiet("losetup", "--direct-io=on", device)


@contextlib.contextmanager
def _restoring_for_ever(rig: Rig, repository: Repository, target: Path, who: str) -> Iterator[None]:
    """One restore after the other, each into a directory of its own, until the context is left."""
    if who == "alone":
        yield
        return
    restic = ["restic", "restore", "latest", "--quiet", "--repo", str(repository.path), "--target"]
    words = restic if who == "restic" else command("restore", "--json", repository.source)
    loop = f'n=0; while n=$((n + 1)); do nice -n 10 {shlex.join(words)} "$0/$n" || exit; done'
    if who != "restic":
        loop = loop.replace("nice -n 10 ", "")  # its workers are
    process = subprocess.Popen(["sh", "-c", loop, str(target)], env=rig.env, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        time.sleep(_HEAD_START_S)
        yield
        if process.poll() is not None:
            raise RuntimeError(f"{who} ended with {process.returncode}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end_orphans()


def _alone(rig: Rig, repository: Repository) -> Iterator[Row]:
    times: dict[str, list[float]] = defaultdict(list)
    for number in range(rig.scale.rounds):
        rig.say(f"alone, round {number + 1} of {rig.scale.rounds}")
        for throttle in ("auto", "off"):
            with rig.disk() as target:
                rig.cold()
                with rig.restoring(repository, target, "--throttle", throttle) as running:
                    times[throttle].append(running.finish())
    yield row("whole restore, nobody else there, yielding", "s", times["auto"], ("--throttle off", times["off"]), _ALONE)
