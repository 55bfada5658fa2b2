"""The thread that keeps a broker informed: it takes the newest from the digest, and nothing of the restore waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

import aiomqtt
from aiomqtt import ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from active_restore.control.registry import directory_name
from active_restore.errors import ActiveRestoreError
from active_restore.mqtt import discovery, payloads
from active_restore.mqtt.commands import Desk
from active_restore.mqtt.connection import Backoff, DaemonThreads, Versions, connected, why
from active_restore.mqtt.digest import Digest
from active_restore.mqtt.topics import KINDS, RETAINED

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from active_restore.control.server import Commands
    from active_restore.mqtt.settings import Settings
    from active_restore.mqtt.topics import Kind
    from active_restore.restore.progress import Event

_log = logging.getLogger(__name__)
_LINGER_S = 2.0
_GIVE_UP_S = 0.5
_STEADY_S = 30.0
# Progress is told once a second anyway; a burst of phases becomes one message.
_GATHER_S = 0.05


class Publisher:
    """``with Publisher(settings, target) as publisher:`` publishes the events given to it until the block is left.

    A ``Reporter``: ``event`` never waits. Leaving the block waits for the broker two seconds at most, and not at all for one
    that has failed already; an exception that leaves it is what the report says.
    """

    def __init__(self, settings: Settings, target: str) -> None:
        self._settings = settings
        self._digest = Digest(settings.topics.node, target, accepts_commands=settings.accept_commands)
        self._desk = Desk(settings.topics, settings.qos)
        # The same again after a reboot: so the broker ends what is left of our old connection before the new one begins.
        self._identifier = f"active-restore-{settings.topics.node}-{directory_name(target)[:8]}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._news: asyncio.Event | None = None
        self._started = threading.Event()
        self._closing = False
        self._trying_since = time.monotonic()
        self._up = False
        self._told = ""
        self._sent_at: dict[Kind, float] = {}
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def __enter__(self) -> Publisher:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._digest.close(_expected(error))
        self._closing = True
        self._wake()
        self._thread.join(self._patience())
        if self._thread.is_alive():
            # Twice: the first cancels what it does, the second its farewell. Then it is left to the end of the process.
            for _ in range(2):
                self._call(self._cancel)
                self._thread.join(_GIVE_UP_S)

    def begin(self, restore_id: str, source: str, commands: Commands) -> None:
        """The restore has a name now, and takes commands."""
        self._digest.begin(restore_id, source)
        self._desk.commands = commands
        self._wake()

    def event(self, event: Event) -> None:
        """Take one event; safe from any thread."""
        if self._digest.event(event):
            self._wake()

    def _patience(self) -> float:
        if self._up:
            return _LINGER_S
        # A first attempt that is under way may still succeed; after a failure nobody waits for the next one.
        return max(self._trying_since + _LINGER_S - time.monotonic(), 0.0) if not self._told else 0.0

    def _wake(self) -> None:
        if self._news is not None:
            self._call(self._news.set)

    def _call(self, function: Callable[[], object]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to be told
                self._loop.call_soon_threadsafe(function)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                asyncio.run(self._serve())
        except Exception:
            _log.exception("MQTT: publishing has ended; the restore goes on")
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(DaemonThreads())
        self._task = asyncio.current_task()
        self._news = asyncio.Event()
        self._started.set()
        backoff = Backoff()
        versions = Versions(self._settings.broker)
        while True:
            begun = time.monotonic()
            try:
                await self._connection(versions)
                return
            except (aiomqtt.MqttError, OSError) as error:
                again = not self._up and versions.failed(error)
                if self._up and time.monotonic() - begun > _STEADY_S:
                    backoff.reset()
                self._up = False
                if not again:
                    self._tell(error)
                    await self._pause(backoff.next())
            if self._closing:
                return

    async def _connection(self, versions: Versions) -> None:
        """From one connection to its end. Returns when we leave; raises ``MqttError`` when it broke."""
        settings, topics = self._settings, self._settings.topics
        will = topics.of("state"), payloads.encode(self._digest.will(), settings.format)
        async with connected(settings.broker, versions.now, self._identifier, will) as client:
            versions.prove()
            self._up = True
            self._digest.connected()
            if self._told:
                _log.warning("MQTT: %s is reached again", settings.broker)
                self._told = ""
            if settings.accept_commands:
                await self._desk.open(client, versions.now)
            if settings.discovery:
                place = discovery.topic(settings.discovery, topics.node)
                await client.publish(place, discovery.message(settings), qos=1, retain=True)
            # Hears of the end of the connection, even while there is nothing to say.
            listener = asyncio.create_task(self._listen(client, versions.now), name="mqtt-listen")
            speaker = asyncio.create_task(self._speak(client, versions.now), name="mqtt-speak")
            try:
                await asyncio.wait((listener, speaker), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (listener, speaker):
                    task.cancel()
                ended = await asyncio.gather(listener, speaker, return_exceptions=True)
            for outcome in ended:
                if isinstance(outcome, Exception):
                    raise outcome

    async def _listen(self, client: aiomqtt.Client, version: ProtocolVersion) -> None:
        if self._settings.accept_commands:
            await self._desk.serve(client, version)
        async for _ in client.messages:
            pass

    async def _speak(self, client: aiomqtt.Client, version: ProtocolVersion) -> None:
        assert self._news is not None
        while True:
            self._news.clear()
            soonest = await self._publish_due(client, version)
            if self._closing and not self._digest.due():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), soonest)
                await asyncio.sleep(0 if self._closing else _GATHER_S)

    async def _publish_due(self, client: aiomqtt.Client, version: ProtocolVersion) -> float:
        """Publish what is due; seconds until the next look."""
        waits = [self._shortest_interval()]
        due = self._digest.due()
        for kind in KINDS:
            if kind not in due:
                continue
            left = 0.0 if self._closing else self._sent_at.get(kind, 0.0) + self._interval(kind) - time.monotonic()
            if left <= 0:
                await self._publish(client, version, kind)
                left = self._interval(kind)
            waits.append(left)
        return max(min(waits), _GATHER_S)

    async def _publish(self, client: aiomqtt.Client, version: ProtocolVersion, kind: Kind) -> None:
        settings = self._settings
        payload, batch = self._digest.take(kind)
        if payload is None:
            return
        try:
            await client.publish(
                settings.topics.of(kind),
                payloads.encode(payload, settings.format),
                qos=settings.qos if kind in ("state", "report") else 0,
                retain=kind in RETAINED,
                properties=_content_type(version, payloads.CONTENT_TYPE[settings.format]),
            )
        except BaseException:
            self._digest.give_back(kind, batch)
            raise
        self._sent_at[kind] = time.monotonic()

    def _interval(self, kind: Kind) -> float:
        if kind == "progress":
            return self._settings.progress_interval_s
        return self._settings.faults_interval_s if kind == "faults" else 0.0

    def _shortest_interval(self) -> float:
        return min(self._settings.progress_interval_s, self._settings.faults_interval_s)

    async def _pause(self, seconds: float) -> None:
        assert self._news is not None
        end = time.monotonic() + seconds
        while not self._closing and (left := end - time.monotonic()) > 0:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left)

    def _tell(self, error: BaseException) -> None:
        """Once for each cause: a broker that is away for days must not fill the log."""
        cause = why(error)
        if cause != self._told:
            _log.warning("MQTT: %s cannot be used (%s); the restore goes on without it", self._settings.broker, cause)
        self._told = cause


def _content_type(version: ProtocolVersion, content_type: str) -> Properties | None:
    if version != ProtocolVersion.V5:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = content_type
    return properties


def _expected(error: BaseException | None) -> ActiveRestoreError | None:
    if error is None or isinstance(error, ActiveRestoreError):
        return error
    return ActiveRestoreError(f"unexpected {type(error).__name__}")
