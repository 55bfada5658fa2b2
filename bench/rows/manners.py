"""What a background restore costs those who use the same disk, and what yielding costs a restore that is alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

from active_restore.control.client import ControlClient
from active_restore.control.registry import Known, directory_name
from active_restore.errors import NotRunning
from bench.data import make_big_files
from bench.disk import quiet
from bench.row import Goal, percentile, row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bench.rig import Repository, Rig
    from bench.row import Row

# After a change, what was written before is on its way to the disk: this part of a window tells nothing.
_UNSETTLED = 0.2
_FILE_MIB = 256
_PEACE = Goal("ours/peer", "<=", 1.10)
_ALONE = Goal("ours/peer", "<=", 1.05)


class Work(NamedTuple):
    """What fio does, one request after the other."""

    name: str
    options: tuple[str, ...]


class Pair(NamedTuple):
    """Latencies in microseconds while the restore goes on, and while it stands still in between."""

    beside: list[float]
    alone: list[float]


_WORKS = (
    Work("random reads of 4 KiB", ("--rw=randread", "--bs=4k", "--direct=1")),
    Work("writes of 8 KiB, each made durable", ("--rw=randwrite", "--bs=8k", "--sync=dsync")),
)


def measure(rig: Rig) -> Iterator[Row]:
    """fio on the disk that is being restored, beside us and beside restic; then us alone, yielding and not."""
    root = rig.scratch / "manners"
    rig.say("making big files")
    make_big_files(root, rig.scale.big_files, rig.scale.big_size, seed=8)
    repository = rig.backup("manners", root)
    quiet("rm", "-r", str(root))
    for work in _WORKS:
        found: dict[str, list[float]] = defaultdict(list)
        for number in range(rig.scale.rounds):
            rig.say(f"{work.name}, round {number + 1} of {rig.scale.rounds}")
            for who, began in (("active-restore", _ours), ("restic", _restic)):
                pair = _latencies(rig, repository, work, began)
                found[who].append(percentile(pair.beside, 99))
                found[f"{who}, still"].append(percentile(pair.alone, 99))
        name = f"p99 of {work.name}"
        still = ("while it is paused", found["active-restore, still"])
        yield row(f"{name}, beside active-restore", "us", found["active-restore"], still, _PEACE)
        yield row(f"{name}, beside restic", "us", found["restic"], ("while it is stopped", found["restic, still"]), _PEACE)
    yield from _alone(rig, repository)
    quiet("rm", "-r", str(repository.path))


def _latencies(rig: Rig, repository: Repository, work: Work, began: Began) -> Pair:
    """Windows in turns, so that whatever else changes on this machine meets both."""
    log = rig.scratch / "fio"
    with rig.disk() as target:
        _bypass_page_cache(target)
        fio = ["fio", "--name=work", f"--filename={target}/work", f"--size={_FILE_MIB}M"]
        quiet(*fio, "--rw=write", "--bs=1M", "--end_fsync=1")
        rig.cold()
        steady = ["--time_based", "--runtime=600", "--thinktime=500", f"--write_lat_log={log}", "--log_unix_epoch=1"]
        worker = subprocess.Popen([*fio, *work.options, *steady, "--thread"], stdout=subprocess.DEVNULL)
        with began(rig, repository, target) as restore:
            windows = _in_turns(restore, rig.scale.fio_seconds)
            # Before the restore is ended, which ends whatever children there are.
            worker.send_signal(signal.SIGINT)
            worker.wait()
    path = log.with_name("fio_clat.1.log")
    pair = _sorted(path, windows)
    path.unlink()
    return pair


def _in_turns(restore: Restore, seconds: float) -> list[tuple[float, float, bool]]:
    """Begin, end (since the epoch) and whether the restore went on; until it has ended or time is over.

    At least one of each: a restore that ends sooner is too small to be measured.
    """
    windows: list[tuple[float, float, bool]] = []
    end = time.monotonic() + seconds
    # Who yields has done so by then.
    time.sleep(seconds / 10)
    while len(windows) < 2 or (restore.goes_on() and time.monotonic() < end):
        for is_on in (True, False):
            restore.let_go_on(is_on)
            begin = time.time()
            time.sleep(seconds / 10)
            windows.append((begin + _UNSETTLED * seconds / 10, time.time(), is_on))
        restore.let_go_on(True)
    return windows


def _sorted(path: Path, windows: list[tuple[float, float, bool]]) -> Pair:
    """A line of fio's log begins with milliseconds since the epoch and nanoseconds."""
    pair = Pair([], [])
    for line in path.read_text().splitlines():
        moment, taken = (int(word) for word in line.split(",")[:2])
        for begin, end, is_on in windows:
            if begin <= moment / 1000 <= end:
                (pair.beside if is_on else pair.alone).append(taken / 1000)
    return pair


class Restore(NamedTuple):
    """A restore that is under way."""

    goes_on: Callable[[], bool]
    let_go_on: Callable[[bool], None]


Began = Callable[["Rig", "Repository", "Path"], "AbstractContextManager[Restore]"]


@contextlib.contextmanager
def _ours(rig: Rig, repository: Repository, target: Path) -> Iterator[Restore]:
    options = [] if rig.scale.cold else ["--limit", "1MB/s"]
    place = target / "restored"
    with rig.restoring(repository, place, "--throttle", "auto", *options) as running:
        running.wait_for("ready")
        with mock.patch.dict(os.environ, rig.env):
            client = ControlClient(Known(directory_name(str(place)), "", "", str(place), "", ""))

        def let_go_on(is_on: bool) -> None:  # noqa: FBT001
            with contextlib.suppress(NotRunning):
                client.proceed() if is_on else client.pause()

        yield Restore(lambda: running.process.poll() is None, let_go_on)
        client.close()


@contextlib.contextmanager
def _restic(rig: Rig, repository: Repository, target: Path) -> Iterator[Restore]:
    options = [] if rig.scale.cold else ["--limit-download", "1000"]
    place = str(target / "restored")
    words = ["nice", "restic", "restore", "latest", "--quiet", "--repo", str(repository.path), "--target", place, *options]
    process = subprocess.Popen(words, env=rig.env, stdout=subprocess.DEVNULL)
    try:
        yield Restore(
            lambda: process.poll() is None, lambda is_on: process.send_signal(signal.SIGCONT if is_on else signal.SIGSTOP)
        )
    finally:
        process.kill()
        process.wait()


def _bypass_page_cache(target: Path) -> None:
    """A loop device that reads its image from memory would be no disk."""
    device = quiet("findmnt", "--noheadings", "--output", "SOURCE", str(target)).strip()
    quiet("losetup", "--direct-io=on", device)


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
