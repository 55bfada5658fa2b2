"""What the commands have in common: how one is declared, and how the running restore that it means is found."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from active_restore.control import registry
from active_restore.control.names import shown
from active_restore.errors import NotRunning, UsageError
from active_restore.restore.select import Selection

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from active_restore.control.registry import Known

Subcommands = Any
"""What ``add_subparsers`` gives; argparse has no public name for it."""


def declare(
    commands: Subcommands,
    common: argparse.ArgumentParser,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A new command with the common options; ``summary`` begins in lower case and has no full stop."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        parents=[common],
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: one object per line."""
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def add_snapshot(parser: argparse.ArgumentParser) -> None:
    """``--snapshot``, ``--include`` and ``--exclude``."""
    parser.add_argument(
        "--snapshot",
        type=snapshot,
        default=("latest", ""),
        metavar="ID|latest[:SUBFOLDER]",
        help="the snapshot, and the folder in it that becomes the root (default: latest)",
    )
    parser.add_argument(
        "--include", action="append", default=[], metavar="GLOB", help="only what matches (can be given several times)"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="not what matches (can be given several times)"
    )


def add_ranges(parser: argparse.ArgumentParser) -> None:
    """Which files are restored by range."""
    parser.add_argument(
        "--ranges",
        action="append",
        metavar="GLOB",
        help="large files that match open at once, and each access waits for what it wants alone (can be given several times); "
        "not for programs that look for holes (SEEK_DATA) or attach loop devices",
    )
    parser.add_argument("--range-threshold", metavar="SIZE", help="what a large file is (default: 16MiB)")


def add_target(parser: argparse.ArgumentParser) -> None:
    """An optional TARGET, for commands that mean the one restore that runs when none is named."""
    parser.add_argument("target", metavar="TARGET", nargs="?", help="may be left out while only one restore runs")


def snapshot(text: str) -> tuple[str, str]:
    """Name and subfolder of ``ID|latest[:SUBFOLDER]``."""
    name, _, subfolder = text.partition(":")
    return name or "latest", subfolder


def selection(arguments: argparse.Namespace) -> Selection:
    """The patterns of ``add_snapshot``. Raises ``UsageError``, also for those of ``add_ranges``."""
    Selection(getattr(arguments, "ranges", None) or ())
    return Selection(arguments.include, arguments.exclude)


def absolute(path: str) -> str:
    """A directory as it is kept: absolute, links unresolved."""
    if not path or "\0" in path:
        raise UsageError("a path is empty", "name a directory")
    return os.path.abspath(path)


def only_restore(target: str | None) -> Known:
    """The restore of ``target``, or the only one there is. Raises ``NotRunning`` and ``UsageError``."""
    if target is not None:
        return registry.find(absolute(target))
    restores = registry.known()
    if not restores:
        raise NotRunning("no restore is under way on this machine", "start one: active-restore restore SOURCE TARGET")
    if len(restores) > 1:
        names = ", ".join(shown(restore.target) for restore in restores)
        raise UsageError(f"{len(restores)} restores are under way: {names}", "name the TARGET that you mean")
    return restores[0]
