"""``active-restore fleet``: every machine that publishes to a broker, live."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Protocol

from active_restore.cli import command
from active_restore.cli.printers.choice import on_terminal
from active_restore.cli.printers.fleet_lines import JsonLines, PlainLines
from active_restore.cli.printers.fleet_table import LiveTable, PlainTable
from active_restore.errors import CapabilityMissing, UsageError
from active_restore.settings.file import load
from active_restore.settings.tables import MqttTable

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands
    from active_restore.mqtt.fleet import Change, Fleet
    from active_restore.mqtt.settings import Settings

_PERIOD_S = 0.5
_QUIET_S = 0.5


class View(Protocol):
    """How a fleet is shown."""

    def change(self, change: Change) -> None:
        """One payload came."""

    def draw(self, fleet: Fleet, now: float, trouble: str) -> None:
        """Time went by. ``trouble`` is why the broker cannot be heard, if it cannot."""

    def close(self, fleet: Fleet, now: float) -> None:
        """Nothing follows."""


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "fleet", "show every machine that publishes to an MQTT broker", run)
    parser.add_argument("--broker", metavar="URL", help="mqtt[s]://[user@]host[:port] (default: [mqtt] broker)")
    command.add_json(parser)
    parser.add_argument("--once", action="store_true", help="show what the broker knows now, then end")
    parser.add_argument("--forget", metavar="HOST", help="take away what the broker keeps of a machine that is gone")


def run(arguments: argparse.Namespace) -> int:
    """Show, until Ctrl-C."""
    settings = _settings(arguments.broker)
    if arguments.forget:
        _forget(settings, arguments.forget)
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch(settings, _view(arguments), once=arguments.once))
    return 0


def _settings(url: str | None) -> Settings:
    # Only now: the library behind it takes its time, and what is mistyped should be told at once.
    from active_restore.mqtt import settings

    try:
        table = load().mqtt
    except CapabilityMissing:
        if url is None:
            raise
        table = MqttTable()  # anybody may look at a broker that is named
    if url is not None:
        table = settings.with_broker(table, url)
    if table.broker is None:
        raise UsageError("no broker is named", "add --broker mqtt://HOST, or name it in the [mqtt] table of the configuration")
    return settings.from_table(table, os.environ)


def _forget(settings: Settings, node: str) -> None:
    from active_restore.mqtt import discovery
    from active_restore.mqtt.listening import forget
    from active_restore.mqtt.topics import RETAINED, Topics, level

    if level(node) != node:
        raise UsageError("that is not the name of a machine", "see: active-restore fleet --once")
    topics = [Topics(settings.topics.prefix, node).of(kind) for kind in RETAINED]
    if settings.discovery:
        topics.append(discovery.topic(settings.discovery, node))
    asyncio.run(forget(settings.broker, topics))


def _view(arguments: argparse.Namespace) -> View:
    if arguments.json:
        return JsonLines()
    if arguments.once:
        return PlainTable()
    return LiveTable() if on_terminal() else PlainLines()


async def _watch(settings: Settings, view: View, *, once: bool) -> None:
    from active_restore.mqtt.fleet import Fleet
    from active_restore.mqtt.listening import Line, listen

    fleet = Fleet(settings.topics.prefix)
    trouble = "connecting"
    last = 0.0

    async def hear() -> None:
        nonlocal trouble, last
        async for arrived in listen(settings.broker, settings.topics.prefix):
            last = time.monotonic()
            if isinstance(arrived, Line):
                trouble = arrived.why
            elif change := fleet.take(arrived.topic, arrived.payload, last, retained=arrived.retained):
                view.change(change)

    hearing = asyncio.create_task(hear(), name="hear")
    try:
        while not hearing.done():
            now = time.monotonic()
            if once and last and not trouble and now - last > _QUIET_S:
                break
            view.draw(fleet, now, trouble)
            await asyncio.wait((hearing,), timeout=_PERIOD_S)
    finally:
        hearing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hearing
        view.close(fleet, time.monotonic())
