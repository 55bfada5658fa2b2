"""Ways in which a server that holds a repository can fail a request for a part of a pack."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

    Fault = Callable[[BaseHTTPRequestHandler, Path], bool]

_LONGEST_SILENCE_S = 60
_SLOW_BYTES, _SLOW_PAUSE_S = 5000, 0.2


class Badness:
    """A fault, and how often it was met; ``cure`` ends it."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler, Path], None], cured: threading.Event | None = None) -> None:
        self._answer = answer
        self._cured = cured or threading.Event()
        self.met = 0

    def __call__(self, request: BaseHTTPRequestHandler, path: Path) -> bool:
        """See ``RestServer.fault``."""
        if self._cured.is_set():
            return False
        self.met += 1
        self._answer(request, path)
        return not self._cured.is_set()

    def cure(self) -> None:
        """From now on all is well."""
        self._cured.set()


def status(code: int) -> Badness:
    """Answers with a status."""

    def answer(request: BaseHTTPRequestHandler, _: Path) -> None:
        request.send_response(code)
        if code in (429, 503):
            request.send_header("Retry-After", "1")
        request.send_header("Content-Length", "0")
        request.end_headers()

    return Badness(answer)


def _begin(request: BaseHTTPRequestHandler, path: Path) -> bytes:
    """Headers of a good answer; the bytes that should follow."""
    first, last = request.headers["Range"].removeprefix("bytes=").split("-")
    data = path.read_bytes()
    part = data[int(first) : int(last) + 1]
    request.send_response(206)
    request.send_header("Content-Length", str(len(part)))
    request.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
    request.end_headers()
    return part


def reset() -> Badness:
    """Half of the bytes, then a reset of the connection."""

    def answer(request: BaseHTTPRequestHandler, path: Path) -> None:
        part = _begin(request, path)
        with contextlib.suppress(OSError):
            request.wfile.write(part[: len(part) // 2])
            request.wfile.flush()
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.connection.close()
        request.close_connection = True

    return Badness(answer)


def short() -> Badness:
    """Half of the bytes, then a good end of the connection."""

    def answer(request: BaseHTTPRequestHandler, path: Path) -> None:
        part = _begin(request, path)
        request.wfile.write(part[: len(part) // 2])
        request.close_connection = True

    return Badness(answer)


def wrong() -> Badness:
    """As many bytes as were asked for, some of them others."""

    def answer(request: BaseHTTPRequestHandler, path: Path) -> None:
        part = bytearray(_begin(request, path))
        part[::5000] = bytes(byte ^ 1 for byte in part[::5000])
        request.wfile.write(part)

    return Badness(answer)


def slow() -> Badness:
    """All bytes, a few at a time."""
    pause = threading.Event()

    def answer(request: BaseHTTPRequestHandler, path: Path) -> None:
        part = _begin(request, path)
        with contextlib.suppress(OSError):
            for start in range(0, len(part), _SLOW_BYTES):
                request.wfile.write(part[start : start + _SLOW_BYTES])
                pause.wait(_SLOW_PAUSE_S)

    return Badness(answer)


def silent() -> Badness:
    """Takes the request and says nothing until it is cured."""
    cured = threading.Event()

    def answer(_: BaseHTTPRequestHandler, __: Path) -> None:
        cured.wait(_LONGEST_SILENCE_S)

    return Badness(answer, cured)
