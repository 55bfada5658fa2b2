"""A proxy inside of this process that leads to one server by its address: certificates and signatures keep its name.

What asks is a client of HTTP that can be given a proxy, but no address for a name. Only requests without a body pass, one for
each connection (TLS: as many as the server likes), and only for who knows the secret in its URL.

Source: RFC 9110, section 9.3.6 (CONNECT); RFC 9112, section 3.2.2 (absolute-form).
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import secrets
import select
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

_USER = "detour"
_CONNECT_S = 10
# Longer than any request may take.
_IDLE_S = 300
_HEAD_BYTES = 64 << 10
_PIECE_BYTES = 256 << 10
_WAITING = 64
_BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_REFUSED = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_TUNNEL = b"HTTP/1.1 200 OK\r\n\r\n"


class Detour:
    """``addresses`` are asked for with each connection; nobody listens before ``open``."""

    def __init__(self, port: int, addresses: Callable[[], tuple[str, ...]]) -> None:
        self._port = port
        self._addresses = addresses
        self._lock = threading.Lock()
        self._is_open = False
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        user = f"{_USER}:{secrets.token_hex(16)}"
        self.authorization = "Basic " + base64.b64encode(user.encode()).decode()
        self.address = ("127.0.0.1", int(self._socket.getsockname()[1]))
        self.url = f"http://{user}@{self.address[0]}:{self.address[1]}"

    def open(self) -> None:
        """From now on it leads there."""
        with self._lock:
            if not self._is_open:
                self._socket.listen(_WAITING)
                self._is_open = True
                threading.Thread(target=self._accept, name="detour", daemon=True).start()

    def close(self) -> None:
        """Nobody is let in any more; who is inside comes to the end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(client,), name="detour", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            client.settimeout(_IDLE_S)
            lines, rest = _read_head(client)
            if not hmac.compare_digest(_value(lines, b"proxy-authorization"), self.authorization.encode()):
                client.sendall(_REFUSED)
                return
            server = self._connect()
            if server is None:
                client.sendall(_BAD_GATEWAY)
                return
            with server:
                if lines[0].startswith(b"CONNECT "):
                    client.sendall(_TUNNEL)
                    server.sendall(rest)
                    _join(client, server)
                else:
                    server.sendall(_direct(lines))
                    while piece := server.recv(_PIECE_BYTES):
                        client.sendall(piece)

    def _connect(self) -> socket.socket | None:
        for address in self._addresses():
            # Numbers all the way: nothing here asks a name service.
            server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            server.settimeout(_CONNECT_S)
            try:
                server.connect((address, self._port))
            except OSError:
                server.close()
                continue
            server.settimeout(_IDLE_S)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return server
        return None


def _read_head(client: socket.socket) -> tuple[list[bytes], bytes]:
    """The lines up to the empty one, and what came after it. Raises ``ValueError`` where that is no request."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = client.recv(_PIECE_BYTES)
        head += piece
        if not piece or len(head) > _HEAD_BYTES:
            raise ValueError("not a request")
    text, _, rest = head.partition(b"\r\n\r\n")
    return text.split(b"\r\n"), rest


def _value(lines: list[bytes], name: bytes) -> bytes:
    for line in lines[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


def _direct(lines: list[bytes]) -> bytes:
    """The request as the server itself wants it, as the only one of its connection."""
    method, url, version = lines[0].split(b" ")
    parts = urlsplit(url)
    path = parts.path or b"/"
    wanted = path + b"?" + parts.query if parts.query else path
    ours = (b"proxy-", b"connection:")
    kept = [line for line in lines[1:] if not line.lower().startswith(ours)]
    return b"\r\n".join([b" ".join((method, wanted, version)), *kept, b"Connection: close", b"", b""])


def _join(one: socket.socket, other: socket.socket) -> None:
    """What one says the other hears, until either has said all or nothing is said for long."""
    peers = {one: other, other: one}
    while True:
        ready, _, _ = select.select(list(peers), [], [], _IDLE_S)
        for speaker in ready:
            piece = speaker.recv(_PIECE_BYTES)
            if not piece:
                return
            peers[speaker].sendall(piece)
        if not ready:
            return
