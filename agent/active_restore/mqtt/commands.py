"""Commands that come by the broker: the words of the control socket except ``stop``, each answered once.

Whoever may publish on the command topic may slow a restore down, no more: nobody can end it, and tasks that wait are served
whatever is commanded. The broker's access rules say who that is.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import aiomqtt
import msgspec
from aiomqtt import ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from active_restore.control.messages import Answer, ErrorText, StopRequest, parse_request
from active_restore.control.server import obey
from active_restore.errors import ActiveRestoreError, UsageError
from active_restore.mqtt.payloads import CONTENT_TYPE, without_secrets

if TYPE_CHECKING:
    from active_restore.control.server import Commands
    from active_restore.mqtt.payloads import Format
    from active_restore.mqtt.topics import Topics

_log = logging.getLogger(__name__)
_MAX_BYTES = 64 << 10
_MAX_ID = 128
_DO_NOT_SEND_RETAINED = 2  # MQTT 5, 3.8.3.1
# Twenty a second are enough for people, and a flood costs no more than that.
_PAUSE_S = 0.05


class Desk:
    """Hears and answers on one connection after the other."""

    def __init__(self, topics: Topics, qos: int) -> None:
        self._topics = topics
        self._qos = qos
        self.commands: Commands | None = None
        """Who obeys, once there is a restore to steer."""

    async def open(self, client: aiomqtt.Client, version: ProtocolVersion) -> None:
        """Nothing that is sent after this is missed. Raises ``aiomqtt.MqttError``."""
        if version == ProtocolVersion.V5:
            await client.subscribe(self._topics.command, options=SubscribeOptions(qos=1, retainHandling=_DO_NOT_SEND_RETAINED))
        else:
            await client.subscribe(self._topics.command, qos=1)

    async def serve(self, client: aiomqtt.Client, version: ProtocolVersion) -> None:
        """Until the connection breaks. Raises ``aiomqtt.MqttError``."""
        async for message in client.messages:
            if not message.retain:  # of whoever knows when; a command is for now
                await self._answer(client, version, message)
                await asyncio.sleep(_PAUSE_S)

    async def _answer(self, client: aiomqtt.Client, version: ProtocolVersion, message: aiomqtt.Message) -> None:
        topic = getattr(message.properties, "ResponseTopic", None) or self._topics.answer
        how: Format = "json" if message.payload[:1] == b"{" else "msgpack"
        fields: dict[str, Any] = {}
        try:
            if not self._topics.may_answer(topic):
                topic = self._topics.answer
                raise UsageError(f"the response topic must be {self._topics.answer} or below it")
            request, name = _parse(message.payload)
            fields = {"id": name} if name is not None else {}
            answer = await self._obey(request)
        except ActiveRestoreError as error:
            answer = Answer(ok=False, error=ErrorText.of(error))
        fields |= answer.model_dump(mode="json", exclude_none=True)
        encode = msgspec.json.encode if how == "json" else msgspec.msgpack.encode
        properties = _properties(message, how) if version == ProtocolVersion.V5 else None
        await client.publish(topic, encode(fields), qos=self._qos, properties=properties)

    async def _obey(self, line: bytes) -> Answer:
        request = parse_request(line)
        if isinstance(request, StopRequest):
            raise UsageError("a restore cannot be stopped by MQTT", "pause it, or stop it on its machine")
        if self.commands is None:
            raise ActiveRestoreError("the restore is still being planned", "try again in a moment")
        try:
            answer = await asyncio.get_running_loop().run_in_executor(None, obey, self.commands, request)
        except ActiveRestoreError:
            raise
        except Exception:
            # A command that fails must not end the connection; the log has what the sender need not see.
            _log.exception("a command that came by MQTT failed")
            raise ActiveRestoreError("the agent could not do that; see its log") from None
        if answer.status is not None:
            answer.status.source = without_secrets(answer.status.source)
        return answer


def _parse(payload: bytes) -> tuple[bytes, str | int | None]:
    """The request as the control socket takes it, and the ``id`` that its sender knows it by. Raises ``UsageError``."""
    if len(payload) > _MAX_BYTES:
        raise UsageError(f"a command is longer than {_MAX_BYTES} bytes")
    try:
        found = (msgspec.json if payload[:1] == b"{" else msgspec.msgpack).decode(payload, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise UsageError("a command is a JSON object or a msgpack map") from None
    name = found.pop("id", None)
    if not isinstance(name, str | int | None) or (isinstance(name, str) and len(name) > _MAX_ID):
        raise UsageError(f"id must be a number or a text of at most {_MAX_ID} characters")
    try:
        return msgspec.json.encode(found), name
    except (TypeError, ValueError, RecursionError):
        raise UsageError("a command holds what JSON cannot") from None


def _properties(message: aiomqtt.Message, how: Format) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = CONTENT_TYPE[how]
    correlation = getattr(message.properties, "CorrelationData", None)
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties
