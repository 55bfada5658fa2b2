"""``active-restore status``: how the restores of this machine are doing."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group
from rich.live import Live
from rich.text import Text

from active_restore.cli import command
from active_restore.cli.printers.choice import on_terminal
from active_restore.cli.printers.json_lines import dump
from active_restore.cli.printers.live import frame
from active_restore.cli.printers.plain import status_lines
from active_restore.control import metrics, registry
from active_restore.control.client import ControlClient
from active_restore.control.messages import StatusText
from active_restore.control.names import plain, shown
from active_restore.errors import NotRunning

if TYPE_CHECKING:
    import argparse

    from rich.console import RenderableType

    from active_restore.cli.command import Subcommands
    from active_restore.control.registry import Known
    from active_restore.restore.progress import Status

_PERIOD_S = 1.0


class Seen(NamedTuple):
    """A restore and what its agent says of it; ``None`` where no agent runs."""

    restore: Known
    status: Status | None


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "status", "show how restores are doing and who waits for what", run)
    parser.add_argument("target", metavar="TARGET", nargs="?", help="only this one (default: all)")
    command.add_json(parser)
    parser.add_argument("--prometheus", action="store_true", help="print metrics in the text format of Prometheus")
    parser.add_argument("--watch", action="store_true", help="go on showing it until the restores have ended")


def run(arguments: argparse.Namespace) -> int:
    """Show the status once, or again and again."""
    if arguments.prometheus:
        print(metrics.text(metrics.collect(_restores(arguments.target))), end="")
        return 0
    seen = look(arguments.target)
    if not arguments.watch:
        _print(seen, as_json=arguments.json)
    elif arguments.json or not on_terminal():
        _watch_lines(arguments, seen)
    else:
        _watch_live(arguments, seen)
    return 0


def look(target: str | None) -> list[Seen]:
    """The restore of ``target``, or all. Raises ``NotRunning`` where ``target`` is not being restored."""
    return [Seen(restore, _ask(restore)) for restore in _restores(target)]


def _restores(target: str | None) -> list[Known]:
    return registry.known() if target is None else [registry.find(command.absolute(target))]


def _ask(restore: Known) -> Status | None:
    try:
        with ControlClient(restore) as client:
            return client.status()
    except NotRunning:
        return None


def _look_again(target: str | None) -> list[Seen]:
    try:
        return look(target)
    except NotRunning:
        return []  # it ended


def _watch_lines(arguments: argparse.Namespace, seen: list[Seen]) -> None:
    while seen:
        _print(seen, as_json=arguments.json)
        time.sleep(_PERIOD_S)
        seen = _look_again(arguments.target)
    if not arguments.json:
        print("no restore is under way", flush=True)


def _watch_live(arguments: argparse.Namespace, seen: list[Seen]) -> None:
    with Live(auto_refresh=False) as live:
        while seen:
            live.update(Group(*(_frame(one) for one in seen)), refresh=True)
            time.sleep(_PERIOD_S)
            seen = _look_again(arguments.target)
        live.update(Text("no restore is under way any more"), refresh=True)


def _frame(seen: Seen) -> RenderableType:
    if seen.status is not None:
        return frame(seen.status)
    return Text("\n".join(_lines(seen)), style="bold red")


def _print(seen: list[Seen], *, as_json: bool) -> None:
    for one in seen:
        for line in [dump(_fields(one))] if as_json else _lines(one):
            print(line)
    if not seen and not as_json:
        print("no restore is under way")
    sys.stdout.flush()


def _fields(seen: Seen) -> dict[str, Any]:
    restore = seen.restore
    if seen.status is not None:
        told = StatusText.of(seen.status).model_dump(mode="json", exclude_none=True)
        return {"event": "status", "agent": True, "restore_id": restore.restore_id, **told}
    return {
        "event": "status",
        "agent": False,
        "restore_id": restore.restore_id,
        "phase": restore.phase,
        "target": plain(restore.target),
        "source": plain(restore.source),
        "snapshot": plain(restore.snapshot),
    }


def _lines(seen: Seen) -> list[str]:
    restore = seen.restore
    head = f"{shown(restore.target)} from {shown(restore.source)}, snapshot {shown(restore.snapshot)}"
    if seen.status is not None:
        return [head, *(f"  {line}" for line in status_lines(seen.status))]
    return [
        head,
        f"  {restore.phase}: no agent is running; tasks that need missing files wait",
        f"  run: active-restore resume {shown(restore.target)}",
    ]
