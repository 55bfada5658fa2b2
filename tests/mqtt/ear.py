"""Somebody who listens to a broker, by another client library than the agent's wrapper, and who remembers all."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from active_restore.mqtt.payloads import decode
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


class Heard(NamedTuple):
    """One message."""

    topic: str
    payload: bytes
    retained: bool
    content_type: str | None
    correlation: bytes | None

    @property
    def kind(self) -> str:
        return self.topic.rpartition("/")[2]

    def decoded(self) -> Any:
        return decode(self.kind, self.payload)


class Ear:
    """``with Ear(port) as ear:`` is subscribed to everything."""

    def __init__(self, port: int, topic: str = "#", user: str | None = None, password: str | None = None) -> None:
        self.heard: list[Heard] = []
        self._topic = topic
        self._port = port
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        if user:
            self._client.username_pw_set(user, password)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._hear

    def __enter__(self) -> Ear:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        assert self._subscribed.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _hear(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        properties: Any = message.properties
        content_type = getattr(properties, "ContentType", None)
        correlation = getattr(properties, "CorrelationData", None)
        self.heard.append(Heard(message.topic, bytes(message.payload), message.retain, content_type, correlation))

    def say(self, topic: str, payload: bytes, *, retain: bool = False, answer: str = "", correlation: bytes = b"") -> None:
        """Publish; with ``answer`` as the response topic."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if answer:
            properties.ResponseTopic = answer
        if correlation:
            properties.CorrelationData = correlation
        self._client.publish(topic, payload, qos=1, retain=retain, properties=properties).wait_for_publish(30)

    def of(self, kind: str) -> list[Heard]:
        """What was heard on topics that end so."""
        return [heard for heard in self.heard if heard.kind == kind]

    def until(self, kind: str, condition: Callable[[Any], object] = lambda _: True, after: int = 0) -> Any:
        """The first payload of this kind with this property, as its class; waits for it. ``after``: messages to leave out."""
        found: list[Any] = []

        def look() -> bool:
            found.extend(p for p in (heard.decoded() for heard in self.heard[after:] if heard.kind == kind) if condition(p))
            return bool(found)

        wait_until(look, f"{kind} on the broker")
        return found[0]
