"""The parser of the command line, put together from the commands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

import active_restore
from active_restore.cli import (
    config,
    doctor,
    fleet,
    limit,
    manifest,
    pause,
    proceed,
    promote,
    release,
    restore,
    resume,
    status,
    verify,
)
from active_restore.errors import UsageError

if TYPE_CHECKING:
    from active_restore.cli.command import Subcommands

_COMMANDS = (restore, resume, status, promote, pause, proceed, limit, verify, doctor, release, manifest, config, fleet)
_EXIT_CODES = """\
exit codes:
  0  all is well            10  no repository there     15  source unavailable
  1  failed                 11  target in use           16  target unusable
  2  usage                  12  wrong password          17  no space
  3  some files refused     13  snapshot unknown        18  capability missing
                            14  repository damaged      19  no such restore
  130  interrupted; active-restore resume TARGET goes on
"""


class Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise ``UsageError``."""
        raise UsageError(message, f"see: {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; ``run`` of what it parses takes the arguments and gives the exit code."""
    parser = Parser(
        prog="active-restore",
        description="Restore a directory tree while it is already in use.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"active-restore {active_restore.__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and all log messages")
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks and all log messages")
    commands: Subcommands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for command in _COMMANDS:
        command.add(commands, common)
    return parser
