"""``active-restore manifest``: write down the SHA-256 of every file, so that a plain copy can be verified like a backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.cli.quantities import count
from active_restore.control.names import shown
from active_restore.source import manifest

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    summary = "record the SHA-256 of every file of a directory, which dir: sources verify from then on"
    parser = command.declare(commands, common, "manifest", summary, run)
    parser.add_argument("directory", metavar="DIR", help="the directory that will be a source")


def run(arguments: argparse.Namespace) -> int:
    """Write the manifest."""
    path, files = manifest.create(command.absolute(arguments.directory))
    print(f"{shown(path)}: {count(files, 'file')}")
    return 0
