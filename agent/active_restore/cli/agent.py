"""``active-restore agent``: the service, which goes on with every unfinished restore of this machine."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.errors import UsageError
from active_restore.settings.file import load
from active_restore.settings.tables import Settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from active_restore.cli.command import Subcommands

_log = logging.getLogger(__name__)


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    command.declare(commands, common, "agent", "the service: go on with every unfinished restore, now and later", run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    del arguments
    from active_restore.service.supervisor import Supervisor
    from active_restore.service.textfile import TextFile

    try:
        settings = load()
    except UsageError as error:
        # Placeholders must be guarded, whatever somebody has written into a file.
        _log.error("defaults are in force: %s", error)
        settings = Settings()
    with TextFile(settings.metrics) as metrics:
        Supervisor(settings.service, lambda target: environment(settings, target), metrics.see).run()
    return 0


def environment(settings: Settings, target: str) -> Mapping[str, str]:
    """The variables for the agent of a target: where ``[restores.NAME]`` names a file with its password, that one."""
    files = [one.password_file for one in settings.restores.values() if one.target == target and one.password_file]
    return {**os.environ, "RESTIC_PASSWORD_FILE": files[0]} if files else os.environ
