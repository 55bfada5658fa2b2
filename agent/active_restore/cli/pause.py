"""``active-restore pause``: stop the background; tasks that need a file still get it."""

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
    summary = "stop filling in the background; files that tasks need still come at once"
    command.add_target(command.declare(commands, common, "pause", summary, run))


def run(arguments: argparse.Namespace) -> int:
    """Pause the background of one restore."""
    restore = command.only_restore(arguments.target)
    with ControlClient(restore) as client:
        client.pause()
    print(f"{shown(restore.target)}: background paused; go on with: active-restore continue {shown(restore.target)}")
    return 0
