"""PostgreSQL over a restore that goes on, against restore first and start then; empty page cache."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

from bench.disk import quiet
from bench.postgres import DIRECTORY, FIRST, FIRST_OF_ONE_FILE, SCAN, Cluster, binaries, install
from bench.row import Goal, row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.rig import Repository, Rig
    from bench.row import Row

_GOAL = Goal("peer/ours", ">=", 5.0)
_SCAN_GOAL = Goal("ours/peer", "<=", 1.0)
_PEER = "restic restore, then start"
_QUERIES = {"first": FIRST, "one file": FIRST_OF_ONE_FILE, "scan": SCAN}

Times = dict[str, list[float]]


def measure(rig: Rig) -> Iterator[Row]:
    """Seconds from the beginning of the restore to each answer."""
    if rig.scale.cold:
        install()
    if binaries() is None:
        rig.say("database: left out, PostgreSQL is not installed (a full run installs it)")
        return
    # The server runs as its own user, who must be able to come to its files.
    rig.scratch.chmod(0o755)
    rig.sockets.chmod(0o755)
    repository, size = _make(rig)
    ours: Times = defaultdict(list)
    peers: Times = defaultdict(list)
    for number in range(rig.scale.rounds):
        rig.say(f"database, round {number + 1} of {rig.scale.rounds}")
        _restore_first(rig, repository, peers)
        _start_at_once(rig, repository, ours)
    quiet("rm", "-r", str(repository.path))
    name = f"PostgreSQL, {size / 1e9:.1f} GB"
    yield row(f"{name}, first answer", "s", ours["first"], (_PEER, peers["first"]), _GOAL)
    yield row(f"{name}, then an answer from a table in one file", "s", ours["one file"], (_PEER, peers["one file"]))
    yield row(f"{name}, then all tables read", "s", ours["scan"], (_PEER, peers["scan"]), _SCAN_GOAL)


def _make(rig: Rig) -> tuple[Repository, int]:
    rig.say("making a PostgreSQL cluster")
    root = rig.scratch / "postgres"
    Cluster(root, rig.sockets / "pg").make(rig.scale.pgbench_scale)
    size = sum(path.stat().st_size for path in (root / DIRECTORY).rglob("*") if path.is_file())
    repository = rig.backup("postgres", root)
    quiet("rm", "-r", str(root))
    return repository, size


def _restore_first(rig: Rig, repository: Repository, times: Times) -> None:
    with rig.disk() as target:
        rig.cold()
        started = time.monotonic()
        rig.restic_restore(repository, target)
        _ask(rig, target, started, times)


def _start_at_once(rig: Rig, repository: Repository, times: Times) -> None:
    with rig.disk() as target:
        rig.cold()
        with rig.restoring(repository, target) as running:
            running.wait_for("ready")
            _ask(rig, target, running.started, times)
            running.finish()


def _ask(rig: Rig, target: Path, started: float, times: Times) -> None:
    cluster = Cluster(target, rig.sockets / "pg")
    with cluster.running():
        for name, query in _QUERIES.items():
            cluster.ask(query)
            times[name].append(time.monotonic() - started)
