"""``active-restore resume``: go on with a restore after Ctrl-C, a kill or a reboot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from active_restore.cli import command, telling
from active_restore.cli.restore import finish

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "resume", "go on with a restore that was interrupted", run)
    parser.add_argument("target", metavar="TARGET", help="the directory that is being restored")
    parser.add_argument("--source", metavar="SOURCE", help="where the backup is now, if it has moved")
    telling.add_mqtt(parser)
    command.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Resume."""
    import active_restore.agent as agent

    target = command.absolute(arguments.target)
    with telling.told(arguments, target) as (told, link):
        return finish(agent.resume(target, told, os.environ, link, source=arguments.source), told)
