"""``active-restore report``: what a restore was like, as text, JSON or a page with plots."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.cli.logbook import logbook_path, logbooks
from active_restore.cli.printers.json_lines import dump
from active_restore.control.names import shown
from active_restore.errors import ActiveRestoreError, NotRunning
from active_restore.report.digest import digest
from active_restore.report.page import facts, page

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands
    from active_restore.report.digest import Report

_UNITS = 10


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "report", "tell what a restore was like, also after it has ended", run)
    parser.add_argument("target", metavar="TARGET", nargs="?", help="default: the restore that was noted last")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with plots that needs nothing else")
    command.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Tell it."""
    report = digest(_find(arguments.target).read_bytes().splitlines())
    if arguments.html is not None:
        try:
            arguments.html.write_text(page(report))
        except OSError as error:
            raise ActiveRestoreError(f"{shown(str(arguments.html))} cannot be written: {error.strerror}") from error
    if arguments.json:
        print(dump({"event": "report", **dataclasses.asdict(report)}))
    elif arguments.html is None:
        print("\n".join(_lines(report)))
    return 0


def _find(target: str | None) -> Path:
    if target is not None:
        path = logbook_path(command.absolute(target))
        if not path.exists():
            raise NotRunning(f"no logbook of a restore of {shown(target)} is there", "see: active-restore report")
        return path
    known = logbooks()
    if not known:
        raise NotRunning("no logbook of any restore is there", "logbooks are kept in /var/log/active-restore")
    return known[-1]


def _lines(report: Report) -> list[str]:
    lines = [f"restore of {shown(report.target)} from {shown(report.source)}, snapshot {shown(report.snapshot)}"]
    lines += [f"  {name}: {value}" for name, value in facts(report)]
    for kind, found in sorted(report.predictions.items()):
        words = f"{found['made']:,} made, {found['hit']:,} in time, {found['late']:,} late, {found['wasted']:,} unused"
        lines.append(f"  predicted ({kind}): {words}")
    for unit in sorted(report.units.values(), key=lambda unit: -unit.waited_ms)[:_UNITS]:
        waited = f"{unit.faults:,} waits, {unit.waited_ms:,.1f} ms"
        lines.append(f"  {shown(unit.name)}: {waited}, usable after {unit.last_s:.2f} s")
    return lines
