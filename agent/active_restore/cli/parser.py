"""The parser of the command line, put together from the commands."""

from __future__ import annotations

import argparse
import importlib
from typing import TYPE_CHECKING, NoReturn

import active_restore
from active_restore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from active_restore.cli.command import Subcommands

# Each is a module of this package. Only that of the command that is run is imported: the others would cost a restore as
# much time as the rest of its start.
_COMMANDS = {
    "restore": "restore",
    "resume": "resume",
    "status": "status",
    "promote": "promote",
    "pause": "pause",
    "continue": "proceed",
    "limit": "limit",
    "verify": "verify",
    "doctor": "doctor",
    "release": "release",
    "manifest": "manifest",
    "record": "record",
    "relax": "relax",
    "changed": "changed",
    "report": "report",
    "config": "config",
    "agent": "agent",
    "run": "run",
    "install": "install",
    "fleet": "fleet",
}
_EXIT_CODES = """\
exit codes:
  0  all is well            10  no repository there     15  source unavailable
  1  failed                 11  target in use           16  target unusable
  2  usage                  12  wrong password          17  no space
  3  some files refused     13  snapshot unknown        18  capability missing
                            14  repository damaged      19  no such restore
  20 what has changed is not known: scan      130  interrupted; active-restore resume TARGET goes on
"""


class Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise ``UsageError``."""
        raise UsageError(message, f"see: {self.prog} --help")


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line; ``run`` of what it parses takes the arguments and gives the exit code.

    Where ``argv`` names a command, it is the only one that the parser knows.
    """
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
    named = next((word for word in argv if not word.startswith("-")), "")
    for module in [_COMMANDS[named]] if named in _COMMANDS else _COMMANDS.values():
        importlib.import_module(f"active_restore.cli.{module}").add(commands, common)
    return parser
