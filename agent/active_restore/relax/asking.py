"""Asking relax mode what has changed: a request and an answer each connection, in msgpack, each until its end of file.

The socket lies in the run directory, which is root's alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Literal

import msgspec

from active_restore.config import run_root
from active_restore.control.names import shown
from active_restore.errors import ActiveRestoreError, NotRunning, ScanNeeded

if TYPE_CHECKING:
    from collections.abc import Callable

_TIMEOUT_S = 30.0
_PATIENCE_S = 600.0
_MAX_REQUEST_BYTES = 64 << 10
_READ_BYTES = 1 << 20
_HINT = "name it in [relax] directories, and: systemctl enable --now active-restore-relax"


class Request(msgspec.Struct):
    """A new ``token``, or the ``paths`` that have changed ``since`` one (empty: since the watch began)."""

    directory: bytes
    want: Literal["token", "paths"]
    since: str = ""


class Answer(msgspec.Struct):
    """What was wanted: paths are relative to the directory, and ``linked`` of them have other names, too. Or an error."""

    token: str = ""
    paths: list[bytes] = []
    linked: int = 0
    error: str = ""
    hint: str = ""
    code: str = ""


class Desk:
    """The server's end: ``serve`` when ``sock`` can be read. Who asks is served at once, in the thread of the loop."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self._answer = answer
        self._path = run_root() / "relax.sock"
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            self.sock.bind(str(self._path))
        finally:
            os.umask(before)
        self.sock.listen(8)

    def serve(self) -> None:
        """One connection. Somebody who does not read is left after a while."""
        connection, _ = self.sock.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_TIMEOUT_S)
            try:
                answer = self._answer(msgspec.msgpack.decode(_until_end(connection, _MAX_REQUEST_BYTES), type=Request))
            except msgspec.MsgspecError as error:
                answer = Answer(error=f"this is no request: {error}", code="usage")
            except ActiveRestoreError as error:
                answer = Answer(error=str(error), hint=error.hint, code=error.code)
            connection.sendall(msgspec.msgpack.encode(answer))

    def close(self) -> None:
        """Nobody is served any more."""
        self.sock.close()
        self._path.unlink(missing_ok=True)


def _until_end(connection: socket.socket, most_bytes: int) -> bytes:
    read = bytearray()
    while len(read) < most_bytes and (more := connection.recv(_READ_BYTES)):
        read += more
    return bytes(read)


def ask(request: Request) -> Answer:
    """The client's end. Raises ``NotRunning``, ``ScanNeeded`` and ``ActiveRestoreError``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(_PATIENCE_S)
        try:
            connection.connect(str(run_root() / "relax.sock"))
        except OSError as error:
            raise NotRunning(f"relax mode does not run, so what changes is not known ({error.strerror})", _HINT) from error
        connection.sendall(msgspec.msgpack.encode(request))
        connection.shutdown(socket.SHUT_WR)
        read = _until_end(connection, 1 << 40)
    try:
        answer = msgspec.msgpack.decode(read, type=Answer)
    except msgspec.MsgspecError:
        raise ActiveRestoreError("relax mode gave no answer", "see: journalctl -u active-restore-relax") from None
    if answer.error:
        kinds: dict[str, type[ActiveRestoreError]] = {ScanNeeded.code: ScanNeeded, NotRunning.code: NotRunning}
        raise kinds.get(answer.code, ActiveRestoreError)(answer.error, answer.hint)
    return answer


def unwatched(directory: str) -> NotRunning:
    """Nobody knows what changes there."""
    return NotRunning(f"{shown(directory)} is not watched by relax mode", _HINT)
