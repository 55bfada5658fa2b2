"""``active-restore relax``: the service of normal times, which notes what is opened first in what the next backup holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.errors import UsageError
from active_restore.settings.file import load, settings_path

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    summary = "the service of normal times: note what is opened first in the directories of [relax]"
    command.declare(commands, common, "relax", summary, run)


def run(arguments: argparse.Namespace) -> int:
    """Watch until a signal."""
    del arguments
    settings = load()
    if not settings.relax.directories:
        raise UsageError(
            f"{settings_path()}: [relax] directories names nothing to watch", 'name what is backed up, like ["/srv"]'
        )
    from active_restore.relax.daemon import Daemon

    Daemon(settings.relax).run()
    return 0
