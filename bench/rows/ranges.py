"""Files by range: a query of a database in one large file that is being restored, and reads of 4 KiB where half is there."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

from active_restore.control.client import ControlClient
from active_restore.control.registry import Known, directory_name
from active_restore.errors import ActiveRestoreError
from bench.data import Pool
from bench.disk import quiet
from bench.restoring import command
from bench.row import row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.rig import Repository, Rig
    from bench.row import Row

_NAME = "words.db"
# With its key it fills a page.
_ROW_BYTES = 3900
_PAGE = 4096
_MOST_ROUNDS = 2
_HOT_READS, _COLD_READS = 100_000, 300
_HOW = ("sequential", "random")
_OPTIONS = ("--ranges", _NAME, "--range-threshold", "1MiB")
_PATIENCE_S = 120.0
_QUERY = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("SELECT length(word) FROM word WHERE id = ?", (int(sys.argv[2]),)).fetchone()[0])
"""

Times = dict[str, list[float]]


class _Base(NamedTuple):
    """The database in its repository."""

    repository: Repository
    size: int
    rows: int


def measure(rig: Rig) -> Iterator[Row]:
    """Seconds from the beginning of the restore to the answer, how much was fetched by then, and microseconds of a read."""
    base = _make(rig)
    seconds: Times = defaultdict(list)
    fetched: list[float] = []
    rounds = min(rig.scale.rounds, _MOST_ROUNDS)
    for number in range(rounds):
        rig.say(f"ranges, round {number + 1} of {rounds}")
        _restore_first(rig, base, seconds["restic"])
        if not number:
            # It takes longest and varies least.
            _mount(rig, base, seconds["mount"])
        fetched.append(_start_at_once(rig, base, seconds["ours"]))
    rig.say("ranges, reads of 4 KiB")
    half, plain = _reads(rig, base)
    quiet("rm", "-r", str(base.repository.path))
    name = f"SQLite, {base.size / 1e9:.1f} GB in one file, by range"
    yield row(f"{name}, first answer", "s", seconds["ours"], ("restic restore first", seconds["restic"]))
    peer = ("restic mount, copied up by overlayfs", seconds["mount"])
    yield row(f"{name}, first answer, against a mount", "s", seconds["ours"], peer)
    yield row(f"{name}, fetched until then", "%", fetched, ("all of it", [100.0]))
    for kind, microseconds in half.items():
        yield row(f"4 KiB of a file by range, {kind}", "us", [microseconds], ("plain file", [plain[kind]]))


def _make(rig: Rig) -> _Base:
    rig.say("making a database in one file")
    root = rig.scratch / "words"
    root.mkdir()
    pool, rows = Pool(11), rig.scale.range_bytes // _PAGE
    with contextlib.closing(sqlite3.connect(root / _NAME)) as db:
        db.executescript("PRAGMA page_size=4096; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
        db.execute("CREATE TABLE word(id INTEGER PRIMARY KEY, word BLOB)")
        db.executemany("INSERT INTO word VALUES(?, ?)", ((number, pool.cut(_ROW_BYTES)) for number in range(rows)))
        db.commit()
    size = (root / _NAME).stat().st_size
    repository = rig.backup("words", root)
    quiet("rm", "-r", str(root))
    return _Base(repository, size, rows)


def _ask(path: Path, base: _Base, started: float, times: list[float]) -> None:
    """Like any program: it opens the file for reading and writing."""
    argv = [sys.executable, "-S", "-c", _QUERY, str(path), str(base.rows * 3 // 4)]
    answer = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    times.append(time.monotonic() - started)
    if int(answer) != _ROW_BYTES:
        raise RuntimeError(f"a wrong answer: {answer}")


def _restore_first(rig: Rig, base: _Base, times: list[float]) -> None:
    with rig.disk() as disk:
        rig.cold()
        started = time.monotonic()
        rig.restic_restore(base.repository, disk)
        _ask(disk / _NAME, base, started, times)


def _mount(rig: Rig, base: _Base, times: list[float]) -> None:
    """As people do it: the mount is read-only, so the first program that opens the file for writing copies all of it."""
    with rig.disk() as disk:
        for name in ("mount", "upper", "work", "merged"):
            (disk / name).mkdir()
        lower = disk / "mount" / "snapshots" / "latest"
        rig.cold()
        started = time.monotonic()
        argv = ("restic", "mount", "--quiet", "--repo", str(base.repository.path), str(disk / "mount"))
        mounting = subprocess.Popen(argv, env=rig.env, stdout=subprocess.DEVNULL)
        try:
            while not (lower / _NAME).exists():
                if mounting.poll() is not None or time.monotonic() - started > _PATIENCE_S:
                    raise RuntimeError("restic mount does not serve")
                time.sleep(0.01)
            # Colons separate layers.
            escaped = str(lower.resolve()).replace(":", "\\:")
            options = f"lowerdir={escaped},upperdir={disk / 'upper'},workdir={disk / 'work'}"
            quiet("mount", "-t", "overlay", "overlay", "-o", options, str(disk / "merged"))
            _ask(disk / "merged" / _NAME, base, started, times)
        finally:
            for name in ("merged", "mount"):
                subprocess.run(["umount", str(disk / name)], capture_output=True, check=False)
            mounting.terminate()
            mounting.wait(_PATIENCE_S)


def _start_at_once(rig: Rig, base: _Base, times: list[float]) -> float:
    """Returns how many per cent were fetched until the answer."""
    with rig.disk() as disk:
        target = disk / "target"
        rig.cold()
        with rig.restoring(base.repository, target, *_OPTIONS) as running:
            running.wait_for("ready")
            with mock.patch.dict(os.environ, rig.env):
                client = ControlClient(Known(directory_name(str(target)), "", "", str(target), "", ""))
            with client:
                _ask(target / _NAME, base, running.started, times)
                try:
                    return 100 * sum(lane.bytes for lane in client.status().lanes.values()) / base.size
                except ActiveRestoreError:
                    # A tiny one is over by now.
                    return 100.0


def _reads(rig: Rig, base: _Base) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of reads of a file of which the first half is there, and then of the same file when all is done."""
    pages = base.size // _PAGE
    hot, cold = min(_HOT_READS, pages // 4), min(_COLD_READS, pages // 64)
    plan = {"there": (pages // 32, pages * 3 // 8, hot), "missing": (pages * 3 // 4, pages - pages // 32, cold)}
    with rig.disk() as disk:
        target = disk / "target"
        with rig.restoring(base.repository, target, *_OPTIONS, "--limit", "1") as running:
            running.wait_for("ready")
            _pages(rig, target, (0, pages // 2, pages // 2), "sequential")
            half = {f"{name}, {how}": _pages(rig, target, span, how) for name, span in plan.items() for how in _HOW}
            rig.output(*command("limit", "0", str(target)))
            running.finish()
        plain: dict[str, float] = {}
        for name, span in plan.items():
            if name == "missing":
                rig.cold()
            plain |= {f"{name}, {how}": _pages(rig, target, span, how) for how in _HOW}
    return half, plain


def _pages(rig: Rig, target: Path, span: tuple[int, int, int], how: str) -> float:
    """Microseconds of a read on average; ``span`` is the first page, the last one, and how many are read."""
    return float(rig.output(rig.program("pages"), str(target / _NAME), *map(str, span), how)) / 1000
