"""Hearing what machines publish, over one connection after the other."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, NamedTuple

import aiomqtt

from active_restore.errors import SourceUnavailable
from active_restore.mqtt.connection import Backoff, DaemonThreads, Versions, connected, why
from active_restore.mqtt.topics import KINDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from active_restore.mqtt.settings import Broker


class Arrived(NamedTuple):
    """A message."""

    topic: str
    payload: bytes
    retained: bool


class Line(NamedTuple):
    """The connection is there now (``why`` is empty), or it broke and another one is tried."""

    why: str


async def listen(broker: Broker, prefix: str) -> AsyncIterator[Arrived | Line]:
    """Everything that machines publish under ``prefix``, for ever. Raises ``SourceUnavailable`` if it fails at once."""
    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    versions, backoff = Versions(broker), Backoff()
    identifier = f"active-restore-fleet-{secrets.token_hex(4)}"
    ever = False
    while True:
        try:
            async with connected(broker, versions.now, identifier, max_incoming=0) as client:
                versions.prove()
                await client.subscribe([(f"{prefix}/+/{kind}", 0) for kind in KINDS])
                ever = True
                yield Line("")
                async for message in client.messages:
                    backoff.reset()
                    yield Arrived(str(message.topic), bytes(message.payload), message.retain)
        except (aiomqtt.MqttError, OSError) as error:
            if versions.failed(error):
                continue
            if not ever:
                raise SourceUnavailable(
                    f"the broker {broker} cannot be used ({why(error)})", "check its address, the password and the certificates"
                ) from error
            yield Line(why(error))
            await asyncio.sleep(backoff.next())


async def forget(broker: Broker, topics: Sequence[str]) -> None:
    """Take away what the broker keeps on these topics. Raises ``SourceUnavailable``."""
    versions = Versions(broker)
    while True:
        try:
            async with connected(broker, versions.now, f"active-restore-fleet-{secrets.token_hex(4)}") as client:
                for topic in topics:
                    await client.publish(topic, b"", qos=1, retain=True)
            return
        except (aiomqtt.MqttError, OSError) as error:
            if not versions.failed(error):
                raise SourceUnavailable(f"the broker {broker} cannot be used ({why(error)})") from error
