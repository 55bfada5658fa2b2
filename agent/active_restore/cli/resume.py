"""``active-restore resume``: go on with a restore after Ctrl-C, a kill or a reboot."""

from __future__ import annotations

import argparse
import os
import signal
from typing import TYPE_CHECKING

from active_restore.cli import command, telling
from active_restore.cli.restore import finish
from active_restore.errors import DiskFailed
from active_restore.linux.process import die_with_parent
from active_restore.restore.progress import Notice

if TYPE_CHECKING:
    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "resume", "go on with a restore that was interrupted", run)
    parser.add_argument("target", metavar="TARGET", help="the directory that is being restored")
    parser.add_argument("--source", metavar="SOURCE", help="where the backup is now, if it has moved")
    parser.add_argument(
        "--wait-for-source", action="store_true", help="guard the target at once, even while the backup cannot be reached"
    )
    # By the service: end with it.
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    telling.add_mqtt(parser)
    command.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Resume."""
    import active_restore.agent as agent

    if arguments.supervised:
        die_with_parent(signal.SIGTERM)
    target = command.absolute(arguments.target)
    agent.need_own_files(target, os.environ)
    try:
        return _go_on(arguments, target, is_asked=not arguments.supervised)
    except _OnceMore:
        return _go_on(arguments, target, is_asked=False)


class _OnceMore(Exception):
    """The disk failed."""


def _go_on(arguments: argparse.Namespace, target: str, *, is_asked: bool) -> int:
    """Resume once; ``is_asked``: because somebody wants to, so once more if that fails.

    The kernel tells of a write that failed until somebody has asked: maybe of one that a dead agent left, on a disk that is
    well again. Nobody can know, so that agent ends as ever, and the next one trusts nothing that was not safe before. The
    service starts it by itself.
    """
    import active_restore.agent as agent

    with telling.told(arguments, target, guard_first=arguments.supervised) as (told, link):
        wait = arguments.wait_for_source
        try:
            done = agent.resume(
                target, told, os.environ, link, source=arguments.source, wait_for_source=wait, stay_paused=not is_asked
            )
        except DiskFailed as error:
            if not is_asked:
                raise
            told.event(Notice(f"{error}: what is not safe yet is restored once more"))
            raise _OnceMore from error
        return finish(done, told)
