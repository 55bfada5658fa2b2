"""One connection after the other: MQTT 5 where the broker speaks it, else 3.1.1, and how long to wait in between."""

from __future__ import annotations

import concurrent.futures
import contextlib
import encodings.idna  # noqa: F401 - getaddrinfo would import it later, when our libraries may be placeholders
import logging
import random
import ssl
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import aiomqtt
from aiomqtt import ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from active_restore.mqtt.settings import Broker

_T = TypeVar("_T")
TIMEOUT_S = 10.0
"""How long one packet may take to be acknowledged before the connection counts as lost."""
_MAX_PACKET_BYTES = 1 << 20
_MAX_INCOMING = 16
# It would write a line for every message of a flood.
_SILENT = logging.getLogger(f"{__name__}.aiomqtt")
_SILENT.setLevel(logging.CRITICAL)
_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 60.0
# CONNACK: 1 as a broker of MQTT 3.1.1 says it, 0x84 as one of MQTT 5 does (unsupported protocol version).
_WRONG_VERSION = (1, 0x84)
# What aiomqtt says when the broker took the connection and then said nothing, or hung up: old ones do that on MQTT 5.
_NO_CONNACK = "Operation timed out"
_HUNG_UP = "the broker hung up"


class Backoff:
    """Seconds to wait: twice as long each time, at most a minute, and never the same for all machines of a fleet."""

    def __init__(self) -> None:
        self._failures = 0

    def next(self) -> float:
        """After one more failure."""
        longest = min(_FIRST_DELAY_S * 2.0**self._failures, _LONGEST_DELAY_S)
        self._failures = min(self._failures + 1, 16)
        return random.uniform(longest / 2, longest)

    def reset(self) -> None:
        """A connection has proved itself."""
        self._failures = 0


class Versions:
    """Which protocol to try next. Brokers that do not know MQTT 5 say so, or hang up, or say nothing at all."""

    def __init__(self, broker: Broker) -> None:
        self._fixed = {"5": ProtocolVersion.V5, "3.1.1": ProtocolVersion.V311}.get(broker.protocol)
        self.now = self._fixed or ProtocolVersion.V5
        self._proved = False

    def prove(self) -> None:
        """The broker took it: no other is tried from now on."""
        self._proved = True

    def failed(self, error: BaseException) -> bool:
        """No connection came about; ``True`` where another version should be tried at once."""
        code = getattr(error, "rc", None)
        refused = getattr(code, "value", code) in _WRONG_VERSION
        if self._fixed or self._proved or not (refused or str(error) in (_NO_CONNACK, _HUNG_UP)):
            return False
        self.now = ProtocolVersion.V311 if self.now == ProtocolVersion.V5 else ProtocolVersion.V5
        return refused and self.now == ProtocolVersion.V311


class _Client(aiomqtt.Client):
    """Notices at once when a broker hangs up instead of letting us in; aiomqtt waits for its timeout."""

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError(_HUNG_UP))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)


@contextlib.asynccontextmanager
async def connected(
    broker: Broker,
    version: ProtocolVersion,
    identifier: str,
    will: tuple[str, bytes] | None = None,
    *,
    max_incoming: int = _MAX_INCOMING,
) -> AsyncIterator[aiomqtt.Client]:
    """A connection while the block runs. ``will`` is the topic and payload of what the broker publishes (retained) if we die.

    Of messages that come faster than they are read ``max_incoming`` are kept, all for 0. Raises ``aiomqtt.MqttError``.
    """
    client = _Client(
        broker.host,
        broker.port,
        username=broker.user,
        password=broker.password,
        identifier=identifier,
        protocol=version,
        will=aiomqtt.Will(*will, qos=1, retain=True) if will else None,
        clean_session=True if version == ProtocolVersion.V311 else None,
        timeout=TIMEOUT_S,
        keepalive=broker.keepalive_s,
        max_queued_incoming_messages=max_incoming,
        logger=_SILENT,
        properties=_properties(version),
        tls_context=broker.tls,
        transport="tcp" if broker.ws_path is None else "websockets",
        websocket_path=broker.ws_path,
    )
    try:
        async with client:
            yield client
    finally:
        # aiomqtt forgets a socket on which no CONNACK came; closing twice does nothing.
        client._client._sock_close()


def _properties(version: ProtocolVersion) -> Properties | None:
    if version != ProtocolVersion.V5:
        return None
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = _MAX_PACKET_BYTES
    return properties


def why(error: BaseException) -> str:
    """The cause of a failure in a few words; never what was sent, so no secret."""
    cause = error.__context__
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, ssl.SSLError):
        return cause.strerror
    return str(error) or type(error).__name__


class DaemonThreads(concurrent.futures.ThreadPoolExecutor):
    """A thread for each call that nobody waits for: looking up a name may take minutes, and the process may end meanwhile."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[_T]:
        """As any executor does."""
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=call, name="mqtt-call", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Nothing to wait for."""
