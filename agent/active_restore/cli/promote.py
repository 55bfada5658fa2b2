"""``active-restore promote``: restore some paths before the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.cli.quantities import count
from active_restore.control import registry
from active_restore.control.client import ControlClient
from active_restore.control.names import shown

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands
    from active_restore.control.registry import Known


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "promote", "restore these files and directories before the rest", run)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a file or directory in a tree that is being restored")


def run(arguments: argparse.Namespace) -> int:
    """Tell each agent concerned which of its paths go first."""
    wanted: dict[Known, list[bytes]] = {}
    for path in arguments.paths:
        restore, relative = registry.containing(command.absolute(path))
        wanted.setdefault(restore, []).append(relative)
    for restore, paths in wanted.items():
        with ControlClient(restore) as client:
            promoted = client.promote(paths)
        print(f"{shown(restore.target)}: {count(promoted, 'file')} promoted")
    return 0
