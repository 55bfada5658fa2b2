"""``active-restore limit``: change how much the background may fetch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.cli.quantities import size
from active_restore.control.client import ControlClient
from active_restore.control.names import shown
from active_restore.rate import parse_rate

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "limit", "limit the background to a rate; what tasks need is never limited", run)
    parser.add_argument("rate", metavar="RATE", help="like 50MB/s or 20MiB/s; 0 takes the limit away")
    command.add_target(parser)


def run(arguments: argparse.Namespace) -> int:
    """Limit the background of one restore."""
    rate = parse_rate(arguments.rate)
    restore = command.only_restore(arguments.target)
    with ControlClient(restore) as client:
        client.limit(rate)
    print(f"{shown(restore.target)}: " + (f"background limited to {size(rate)}/s" if rate else "no limit"))
    return 0
