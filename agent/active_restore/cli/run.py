"""``active-restore run``: the restore that the configuration describes under a name, begun or gone on with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from active_restore.cli import command, telling
from active_restore.cli.agent import environment
from active_restore.cli.restore import finish
from active_restore.control import registry
from active_restore.errors import NotRunning, UsageError
from active_restore.settings.file import load, settings_path

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    summary = "begin (or go on with) the restore that the configuration calls NAME"
    parser = command.declare(commands, common, "run", summary, run)
    parser.add_argument("name", metavar="NAME", help="of a table [restores.NAME]")
    telling.add_mqtt(parser)
    command.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Restore what the configuration says."""
    settings = load()
    named = settings.named(arguments.name)
    if named is None:
        names = ", ".join(settings.restores) or "none"
        raise UsageError(f"{settings_path()}: there is no [restores.{arguments.name}]", f"there are: {names}")
    import active_restore.agent as agent

    env = {**os.environ, **environment(settings, named.target)}
    with telling.told(arguments, named.target) as (told, link):
        if _is_known(named.target):
            done = agent.resume(named.target, told, env, link, source=named.source, wait_for_source=True)
        else:
            done = agent.restore(named.options(), told, env, link)
        return finish(done, told)


def _is_known(target: str) -> bool:
    try:
        registry.find(target)
    except NotRunning:
        return False
    return True
