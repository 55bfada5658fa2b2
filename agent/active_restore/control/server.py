"""The agent's end of the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from active_restore.config import LimitWindow
from active_restore.control import messages
from active_restore.control.messages import Answer, ErrorText, StatusText
from active_restore.errors import ActiveRestoreError, CapabilityMissing, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from active_restore.restore.progress import Status

_log = logging.getLogger(__name__)
_MAX_CLIENTS = 32
_IDLE_S = 600.0
_SEND_S = 10.0
_LEAVE_S = 2.0


class Commands(Protocol):
    """What the agent can be asked. Called in a thread of the server's own pool, maybe two at a time; may block and raise."""

    def status(self) -> Status:
        """The state now."""

    def promote(self, paths: Sequence[bytes]) -> int:
        """Bring these paths (relative to the target, ``b""`` is all of it) and all below forward; how many files were."""

    def pause(self) -> None:
        """Stop the background lane."""

    def proceed(self) -> None:
        """Let the background lane go on."""

    def limit(self, bytes_per_s: int, windows: Sequence[LimitWindow] = ()) -> None:
        """Limit the background lane; 0 for no limit. In its hours a window's limit holds instead."""

    def stop(self) -> None:
        """Begin to end the agent; returns at once."""


class ControlServer:
    """``async with ControlServer(path, commands):`` serves until the block is left; the socket is gone after it."""

    def __init__(self, path: Path, commands: Commands) -> None:
        self._path = path
        self._commands = commands
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="control")
        self._idle: set[asyncio.StreamWriter] = set()
        self._clients: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._leaving = False

    async def __aenter__(self) -> ControlServer:
        """Raises ``OSError`` where the socket cannot be made."""
        self._directory = _private_directory(self._path.parent)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=self._bind(), limit=messages.MAX_LINE_BYTES, start_serving=True
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Answers that are being made still go out; then every connection ends."""
        self._leaving = True
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path.name, dir_fd=self._directory)
        for writer in list(self._idle):
            writer.transport.abort()
        tasks = [task for task in self._clients.values() if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=_LEAVE_S)
        for writer in list(self._clients):
            writer.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=_LEAVE_S)
        self._pool.shutdown(wait=False, cancel_futures=True)
        os.close(self._directory)

    def _bind(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path.name, dir_fd=self._directory)  # of an agent that was killed
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Through the directory's descriptor: a socket address holds only 108 bytes of path.
            listener.bind(f"/proc/self/fd/{self._directory}/{self._path.name}")
        except BaseException:
            listener.close()
            raise
        return listener

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, from its connection to its end."""
        self._clients[writer] = asyncio.current_task()
        try:
            if not self._leaving:
                await self._converse(reader, writer)
        except (OSError, TimeoutError):
            pass  # the client went away or does not read its answers: nothing of ours depends on it
        finally:
            del self._clients[writer]
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        refusal = _refusal(writer, len(self._clients))
        while refusal is None and not self._leaving:
            self._idle.add(writer)
            try:
                line = await asyncio.wait_for(reader.readline(), _IDLE_S)
            except ValueError:
                refusal = UsageError(f"a request is longer than {messages.MAX_LINE_BYTES} bytes")
                break
            finally:
                self._idle.discard(writer)
            if not line.endswith(b"\n"):
                return
            await _send(writer, await self._answer(line))
        if refusal is not None:
            await _send(writer, Answer(ok=False, error=ErrorText.of(refusal)))

    async def _answer(self, line: bytes) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, obey, self._commands, messages.parse_request(line))
        except ActiveRestoreError as error:
            return Answer(ok=False, error=ErrorText.of(error))
        except Exception:
            # A command that fails must not end the restore; the log has what the client need not see.
            _log.exception("a control command failed")
            return Answer(ok=False, error=ErrorText(code="failed", message="the agent could not do that; see its log"))


def obey(commands: Commands, request: messages.Request) -> Answer:
    """Do what is asked, however it was asked; may block. Raises what ``commands`` raises."""
    match request:
        case messages.StatusRequest():
            return Answer(status=StatusText.of(commands.status()))
        case messages.PromoteRequest():
            return Answer(promoted=commands.promote([path.to_bytes() for path in request.paths]))
        case messages.LimitRequest():
            windows = [LimitWindow(**window.model_dump()) for window in request.windows]
            commands.limit(request.bytes_per_s, windows)
        case messages.PauseRequest():
            commands.pause()
        case messages.ContinueRequest():
            commands.proceed()
        case messages.StopRequest():
            commands.stop()
    return Answer()


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(answer.to_line())
    await asyncio.wait_for(writer.drain(), _SEND_S)


def _refusal(writer: asyncio.StreamWriter, clients: int) -> ActiveRestoreError | None:
    """Why this client is not served. The directory keeps others than root out; this holds where its mode was changed."""
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", credentials)
    if uid != 0:
        return CapabilityMissing("only root may control a restore", "run the command with sudo")
    if clients > _MAX_CLIENTS:
        return ActiveRestoreError("too many clients are connected to this agent", "end some of them and try again")
    return None


def _private_directory(path: Path) -> int:
    """Make the directory if need be and make sure that only root can enter it; gives a descriptor of it."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(directory)
    if found.st_uid != os.geteuid():
        os.close(directory)
        raise CapabilityMissing(f"{path} belongs to another user", f"remove {path} and try again")
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.fchmod(directory, 0o700)
    return directory
