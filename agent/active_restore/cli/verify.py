"""``active-restore verify``: prove that a restored tree equals its snapshot, whoever restored it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from active_restore.cli import command
from active_restore.cli.printers.json_lines import dump
from active_restore.cli.quantities import count, size
from active_restore.control.names import path_fields, plain, shown
from active_restore.source.open import open_source
from active_restore.verify import Difference, Verdict, Verifier

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands
    from active_restore.source.base import Source


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    summary = "compare a restored tree with its snapshot: content, metadata, and that nothing of ours is left"
    parser = command.declare(commands, common, "verify", summary, run)
    parser.add_argument("source", metavar="SOURCE", help="dir:PATH or restic:REPOSITORY")
    parser.add_argument("target", metavar="TARGET", help="the directory that was restored")
    command.add_snapshot(parser)
    parser.add_argument("--extra", action="store_true", help="names that are not in the snapshot are differences, too")
    command.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Verify; 1 where anything differs."""
    command.selection(arguments)
    source = open_source(arguments.source, os.environ)
    try:
        verdict = _verify(source, arguments)
    finally:
        source.close()
    _print_verdict(verdict, as_json=arguments.json)
    return 1 if verdict.differences else 0


def _verify(source: Source, arguments: argparse.Namespace) -> Verdict:
    name, subfolder = arguments.snapshot
    snapshot = source.select(name)
    entries = command.selection(arguments).filter(source.walk(snapshot, os.fsencode(subfolder)))
    tell = _print_json if arguments.json else _print_line
    reader = source.reader()
    try:
        verifier = Verifier(command.absolute(arguments.target), reader, tell)
        try:
            return verifier.run(entries, snapshot.time_ns, extra=arguments.extra)
        finally:
            verifier.close()
    finally:
        reader.close()


def _print_line(difference: Difference) -> None:
    text = f"{difference.what}: {shown(difference.path) or '.'}"
    if difference.expected:
        text += f": expected {shown(difference.expected)}, found {shown(difference.found)}"
    elif difference.found:
        text += f": {shown(difference.found)}"
    print(text)


def _print_json(difference: Difference) -> None:
    fields: dict[str, Any] = {"event": "difference", "what": difference.what, **path_fields(difference.path)}
    fields.update(expected=plain(difference.expected), found=plain(difference.found))
    print(dump(fields))


def _print_verdict(verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        print(
            dump(
                {
                    "event": "verified",
                    "equal": not verdict.differences,
                    "entries": verdict.entries,
                    "files": verdict.files,
                    "bytes": verdict.bytes,
                    "differences": verdict.differences,
                }
            )
        )
        return
    compared = f"{verdict.entries:,} names and the content of {count(verdict.files, 'file')} ({size(verdict.bytes)}) compared"
    if verdict.differences:
        print(f"NOT equal: {count(verdict.differences, 'difference')}; {compared}")
    else:
        print(f"equal: {compared}; nothing of a restore is left")
