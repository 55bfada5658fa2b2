"""``active-restore changed``: what has changed in a directory since a moment, so that a backup need not look at everything."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.cli.printers.json_lines import dump
from active_restore.cli.quantities import count
from active_restore.control.names import path_fields
from active_restore.relax import asking

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "changed", "list what has changed, as relax mode knows it", run)
    parser.add_argument("directory", metavar="DIR", help="in [relax] directories, or below one of them")
    parser.add_argument("--token", action="store_true", help="print a token of this moment instead")
    parser.add_argument("--since", default="", metavar="TOKEN", help="since that moment (default: since the watch began)")
    parser.add_argument("-0", "--null", action="store_true", help="end paths with a NUL instead of a newline")
    parser.add_argument(
        "--only", choices=("files", "gone"), help="files: what is there and no directory; gone: what is not there any more"
    )
    command.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Paths relative to the directory. Nothing is printed where they are not known: everything may have changed then."""
    directory = os.fsencode(os.path.realpath(command.absolute(arguments.directory)))
    if arguments.token:
        token = asking.ask(asking.Request(directory, "token")).token
        print(dump({"event": "token", "token": token}) if arguments.json else token)
        return 0
    answer = asking.ask(asking.Request(directory, "paths", arguments.since))
    found = list(_only(arguments.only, directory, answer.paths))
    if arguments.json:
        print("\n".join(dump({"event": "changed", **path_fields(path)}) for path in found))
    else:
        end = b"\0" if arguments.null else b"\n"
        sys.stdout.buffer.write(b"".join(path + end for path in found))
        sys.stdout.buffer.flush()
    if answer.linked:
        text = f"active-restore: {count(answer.linked, 'file')} in this list have other names, which are not in it"
        print(text, file=sys.stderr)
    return 0


def _only(which: str | None, directory: bytes, paths: list[bytes]) -> Iterator[bytes]:
    for path in paths:
        place = os.path.join(directory, path)
        if which is None or which == _kind(place):
            yield path


def _kind(place: bytes) -> str:
    if not os.path.lexists(place):
        return "gone"
    return "directories" if os.path.isdir(place) and not os.path.islink(place) else "files"
