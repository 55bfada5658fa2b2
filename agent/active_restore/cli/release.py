"""``active-restore release``: give a restore up whose agent is gone for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.control.names import shown

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    summary = "give a restore up whose agent is gone: waiting tasks get an error, never zeros"
    parser = command.declare(commands, common, "release", summary, run)
    parser.add_argument("target", metavar="TARGET", help="the directory that was being restored")


def run(arguments: argparse.Namespace) -> int:
    """Release the tasks that wait."""
    import active_restore.agent as agent

    target = command.absolute(arguments.target)
    agent.release(target)
    print(f"{shown(target)}: tasks that need missing files get EIO from now on; active-restore resume still goes on")
    return 0
