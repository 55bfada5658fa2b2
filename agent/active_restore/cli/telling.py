"""Who is told about a restore: the terminal, pipe or log that the command writes to, and a broker where one is named."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from active_restore.cli.printers.choice import reporter
from active_restore.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from active_restore.agent import Link
    from active_restore.mqtt.settings import Settings
    from active_restore.restore.progress import Event, Reporter


class _Each:
    """A reporter that hands each event on to several."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def event(self, event: Event) -> None:
        """To each in turn; none of them waits."""
        for one in self._reporters:
            one.event(event)


def add_mqtt(parser: argparse.ArgumentParser) -> None:
    """``--mqtt`` and what TLS needs."""
    group = parser.add_argument_group("telling an MQTT broker", "The restore never waits for it.")
    group.add_argument("--mqtt", metavar="URL", help="mqtt://[user@]host[:port], or mqtts:// for TLS")
    group.add_argument("--mqtt-ca", metavar="FILE", help="believe only this certificate authority (default: the system's)")
    group.add_argument("--mqtt-cert", metavar="FILE", help="our certificate, where the broker wants one")
    group.add_argument("--mqtt-key", metavar="FILE", help="its key (default: in the same file)")


@contextlib.contextmanager
def told(arguments: argparse.Namespace, target: str) -> Iterator[tuple[Reporter, Link | None]]:
    """The reporter of a restore, and the link to the broker if there is one. Raises ``UsageError``."""
    settings = mqtt_settings(arguments)
    with reporter(as_json=arguments.json) as printed:
        if settings is None:
            yield printed, None
            return
        from active_restore.mqtt.publisher import Publisher

        with Publisher(settings, target) as publisher:
            yield _Each(printed, publisher), publisher


def mqtt_settings(arguments: argparse.Namespace) -> Settings | None:
    """What the options say; ``None`` without a broker. Raises ``UsageError``."""
    if arguments.mqtt is None:
        if arguments.mqtt_ca or arguments.mqtt_cert or arguments.mqtt_key:
            raise UsageError("certificates are given, but no broker", "add --mqtt mqtts://HOST")
        return None
    # Only now: most restores have no broker, and none should pay for its library.
    from active_restore.mqtt import settings, topics

    host, port, user, tls = settings.parse_url(arguments.mqtt)
    if not tls and (arguments.mqtt_ca or arguments.mqtt_cert or arguments.mqtt_key):
        raise UsageError("certificates are given, but the broker is to be reached without TLS", f"write mqtts://{host}")
    context = settings.tls_context(arguments.mqtt_ca, arguments.mqtt_cert, arguments.mqtt_key) if tls else None
    broker = settings.Broker(host, port, user, settings.find_password(os.environ), context)
    return settings.Settings(broker, topics.Topics("active-restore", settings.machine_name()))
