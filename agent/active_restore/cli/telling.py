"""Who is told about a restore: the terminal, pipe or log that the command writes to, and a broker where one is named."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from active_restore.cli import logbook
from active_restore.cli.printers.choice import reporter
from active_restore.errors import UsageError
from active_restore.settings.file import load

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from active_restore.agent import Link
    from active_restore.mqtt.settings import Settings
    from active_restore.restore.progress import Event, Reporter

_log = logging.getLogger(__name__)


class _Each:
    """A reporter that hands each event on to several."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def event(self, event: Event) -> None:
        """To each in turn; none of them waits."""
        for one in self._reporters:
            one.event(event)


def add_mqtt(parser: argparse.ArgumentParser) -> None:
    """``--mqtt``."""
    parser.add_argument(
        "--mqtt",
        metavar="URL",
        help="tell this broker: mqtt://[user@]host[:port], or mqtts:// for TLS; off for none (default: [mqtt] broker)",
    )


@contextlib.contextmanager
def told(arguments: argparse.Namespace, target: str, *, guard_first: bool = False) -> Iterator[tuple[Reporter, Link | None]]:
    """The reporter of a restore, and the link to the broker if there is one. Raises ``UsageError``.

    With ``guard_first`` a broker that is configured wrongly is none: somebody waits for the guard.
    """
    try:
        settings = mqtt_settings(arguments.mqtt)
    except UsageError as error:
        if not guard_first:
            raise
        _log.error("nothing is published: %s", error)
        settings = None
    with reporter(as_json=arguments.json) as printed, logbook.kept(target) as noted:
        both = _Each(printed, noted) if noted else printed
        if settings is None:
            yield both, None
            return
        from active_restore.mqtt.places import place
        from active_restore.mqtt.publisher import Publisher

        with place(settings, target) as own, Publisher(own, target) as publisher:
            yield _Each(both, publisher), publisher


def mqtt_settings(url: str | None) -> Settings | None:
    """What ``--mqtt`` and ``[mqtt]`` say; ``None`` without a broker. Raises ``UsageError``."""
    table = load().mqtt
    if url == "off" or (url is None and table.broker is None):
        return None
    # Only now: most restores have no broker, and none should pay for its library.
    from active_restore.mqtt import settings

    return settings.from_table(table if url is None else settings.with_broker(table, url), os.environ)
