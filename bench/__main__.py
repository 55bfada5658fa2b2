"""``bench/run``: measure, print the table, write ``bench/results.json``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.disk import filesystem_type, free_bytes
from bench.orphans import end_orphans, take_charge
from bench.rig import FULL, QUICK, Rig, Scale
from bench.rows import (
    database,
    demand,
    durability,
    manners,
    memory,
    others,
    placeholders,
    ranges,
    registration,
    relax,
    starting,
    whole,
)
from bench.table import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.row import Row

MEASUREMENTS: dict[str, Callable[[Rig], Iterator[Row]]] = {
    "memory": memory.measure,
    "registration": registration.measure,
    "placeholders": placeholders.measure,
    "demand": demand.measure,
    "small": whole.measure_small,
    "others": others.measure,
    "relax": relax.measure,
    "durability": durability.measure,
    "big": whole.measure_big,
    "manners": manners.measure,
    "database": database.measure,
    "ranges": ranges.measure,
    "starting": starting.measure,
}
RESULTS = Path(__file__).parent / "results.json"
_NEEDED_BYTES = 30 << 30
_NEEDED_BYTES_QUICK = 2 << 30


def main() -> int:
    """Measure what is asked for; 0 whatever the figures are."""
    arguments = _parser().parse_args()
    if os.geteuid():
        print("bench: must be run as root (it mounts file systems and drops the page cache)", file=sys.stderr)
        return 1
    take_charge()
    scratch = Path(tempfile.mkdtemp(prefix="active-restore-bench.", dir=arguments.scratch))
    # The name of a socket must be short, wherever the scratch directory is.
    sockets = Path(tempfile.mkdtemp(prefix="ar-", dir="/run"))
    try:
        wrong = _unfit(scratch, _NEEDED_BYTES_QUICK if arguments.quick else _NEEDED_BYTES)
        if wrong:
            print(f"bench: {wrong}", file=sys.stderr)
            return 1
        rig = Rig(scratch, sockets, _scale(arguments))
        rows = _measure(rig, arguments.only or list(MEASUREMENTS), arguments.results)
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    finally:
        end_orphans()
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(sockets, ignore_errors=True)
    show(rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/run", description="Measure Active Restore against its peers.")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument(
        "--quick", action="store_true", help="tiny data, one round: does it work at all? (figures mean nothing)"
    )
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help=f"rounds of each pair (default: {FULL.rounds})")
    parser.add_argument("--million", action="store_true", help="lay a million placeholders instead of scaling")
    parser.add_argument(
        "--scratch", default="/var/tmp", metavar="DIR", help="a directory on a disk with 30 GB free (default: /var/tmp)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="default: bench/results.json")
    return parser


def _scale(arguments: argparse.Namespace) -> Scale:
    scale = QUICK if arguments.quick else FULL
    if arguments.rounds:
        scale = dataclasses.replace(scale, rounds=arguments.rounds)
    if arguments.million:
        scale = dataclasses.replace(scale, placeholders=1_000_000)
    return scale


def _unfit(scratch: Path, needed_bytes: int) -> str:
    """Why the scratch directory will not do, or nothing."""
    kind = filesystem_type(scratch)
    if kind in ("tmpfs", "ramfs", "overlayfs"):
        return f"{scratch.parent} is on {kind}: name a directory on a disk with --scratch"
    if free_bytes(scratch) < needed_bytes:
        return f"{scratch.parent} has less than {needed_bytes >> 30} GiB free: name another directory with --scratch"
    return ""


def _measure(rig: Rig, names: list[str], results: Path) -> list[Row]:
    """The rows; ``results`` is written anew after each group, so that an interrupted run is not lost."""
    rows: list[Row] = []
    for name in names:
        started = time.monotonic()
        with contextlib.closing(MEASUREMENTS[name](rig)) as measurement:  # type: ignore[type-var]
            rows.extend(measurement)
        rig.say(f"{name}: {time.monotonic() - started:.0f} s")
        results.write_text(json.dumps([row.as_dict() for row in rows], indent=1) + "\n")
    return rows


if __name__ == "__main__":
    sys.exit(main())
