"""``active-restore continue``: let the background go on after ``pause``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.control.client import ControlClient
from active_restore.control.names import shown

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    command.add_target(command.declare(commands, common, "continue", "go on filling after a pause", run))


def run(arguments: argparse.Namespace) -> int:
    """Let the background of one restore go on."""
    restore = command.only_restore(arguments.target)
    with ControlClient(restore) as client:
        client.proceed()
    print(f"{shown(restore.target)}: background goes on")
    return 0
