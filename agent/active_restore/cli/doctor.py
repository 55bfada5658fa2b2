"""``active-restore doctor``: what this machine has and lacks for a restore."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.cli.checks import bpf, kernel, process, target
from active_restore.cli.checks.finding import Finding, by_range, usable
from active_restore.cli.printers.json_lines import dump

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands

_NEEDED_BY = {"any": "every restore", "fanotify": "fanotify", "bpf": "bpf", "advised": "nothing, but better with it"}

_NONE = "no restore can run here: see what is missing above"


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "doctor", "say what this machine has and lacks for a restore", run)
    parser.add_argument("target", metavar="TARGET", nargs="?", default="/", help="where a restore would go (default: /)")
    command.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check everything; 0 where at least one interceptor could work."""
    place = command.absolute(arguments.target)
    findings = [*process.findings(), *kernel.findings(), *target.findings(place), *bpf.findings(place)]
    interceptors, ranges = usable(findings), by_range(findings)
    if arguments.json:
        for finding in findings:
            print(dump({"event": "capability", **dataclasses.asdict(finding)}))
        print(dump({"event": "verdict", "interceptors": interceptors, "ranges": ranges}))
    else:
        for finding in findings:
            _print(finding)
        names = " or ".join(interceptors)
        verdict = f"a restore can run here, held by {names}; --interceptor auto takes {interceptors[0]}" if names else _NONE
        print(verdict)
        print(f"files by range (--ranges): {f'by {ranges}' if ranges else 'none, tasks wait for whole files'}")
    return 0 if interceptors else 1


def _print(finding: Finding) -> None:
    print(f"{'yes' if finding.present else 'NO ':3} {finding.name}: {finding.detail}")
    print(f"      why: {finding.why}; needed by: {_NEEDED_BY[finding.need]}")
    if not finding.present:
        print(f"      do:  {finding.todo}")
