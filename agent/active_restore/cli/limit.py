"""``active-restore limit``: change how much the background may fetch, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.cli.quantities import size
from active_restore.control.client import ControlClient
from active_restore.control.names import shown
from active_restore.schedule import is_schedule, parse_schedule, show_window

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands
    from active_restore.schedule import Schedule


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "limit", "limit the background to a rate; what tasks need is never limited", run)
    parser.usage = "active-restore limit RATE [HH:MM-HH:MM...] [, RATE [HH:MM-HH:MM...]]... [TARGET]"
    parser.add_argument(
        "words",
        metavar="RATE",
        nargs="+",
        help="like 50MB/s or 20MiB/s, 0 takes the limit away; hours in local time may follow, and more rates after commas; "
        "TARGET may be left out while only one restore runs",
    )


def run(arguments: argparse.Namespace) -> int:
    """Limit the background of one restore."""
    words, target = _split(arguments.words)
    limit = parse_schedule(" ".join(words))
    restore = command.only_restore(target)
    with ControlClient(restore) as client:
        client.limit(limit.bytes_per_s, limit.windows)
    print(f"{shown(restore.target)}: {_told(limit)}")
    return 0


def _split(words: list[str]) -> tuple[list[str], str | None]:
    """The limit, and the target where the last word is no part of it."""
    if len(words) > 1 and not is_schedule(words) and is_schedule(words[:-1]):
        return words[:-1], words[-1]
    return words, None


def _told(limit: Schedule) -> str:
    parts = [f"{_rate(window.bytes_per_s)} {show_window(window)}" for window in limit.windows]
    if not parts:
        return _rate(limit.bytes_per_s)
    return ", ".join([*parts, f"else {_rate(limit.bytes_per_s)}"])


def _rate(bytes_per_s: int) -> str:
    return f"background limited to {size(bytes_per_s)}/s" if bytes_per_s else "no limit"
