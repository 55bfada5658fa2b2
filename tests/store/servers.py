"""Real servers on loopback: a REST server as restic speaks it, and moto's S3 server as its own process.

Source of the REST protocol: restic ``doc/REST_backend.rst``.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hmac
import ipaddress
import json
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A name that nobody can look up: RFC 6761, section 6.4. With a dot moto would take its beginning for a bucket.
NOWHERE = "invalid"
USER, PASSWORD = "reader", "pass:w/rd"
S3_ENV = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "very-secret", "AWS_DEFAULT_REGION": "us-east-1"}
_V2 = "application/vnd.x.restic.rest.v2"


class RestServer(ThreadingHTTPServer):
    """Serves the folders below ``root`` as repositories. ``refusals`` answers are 503 before the next good one."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, root: Path, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Requests)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.root = root
        self.refusals = 0
        self.password = PASSWORD
        self.requests: list[str] = []
        self.with_version_2 = True
        self.garbled = False
        self.fault: Callable[[BaseHTTPRequestHandler, Path], bool] | None = None
        """Asked before an object is answered; true where it has done so itself, in its own bad way."""
        self._links: list[socket.socket] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, Any]:
        """Remember the connection: a server that goes away takes its connections with it."""
        link, peer = super().get_request()
        self._links.append(link)
        return link, peer

    def drop(self) -> None:
        """End every connection."""
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Stop answering and free the port."""
        self.drop()
        self.shutdown()
        self._thread.join(10)
        self.server_close()


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Header and body go out in two writes: without this each answer waits for a delayed acknowledgement.
    disable_nagle_algorithm = True
    server: RestServer

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        if (path := self._admitted()) is None:
            return
        if self.server.fault is not None and self.server.fault(self, path):
            return
        if path.is_dir():
            self._listing(path)
        elif not path.is_file():
            self._answer(404)
        else:
            self._content(path.read_bytes())

    def do_HEAD(self) -> None:
        if (path := self._admitted()) is None:
            return
        size = path.stat().st_size if path.is_file() else None
        self._answer(200 if size is not None else 404, length=size or 0)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if (path := self._admitted()) is None:
            return
        if "create=true" in self.path:
            for folder in ("data", "keys", "locks", "snapshots", "index"):
                (path / folder).mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        self._answer(200)

    def do_DELETE(self) -> None:
        if (path := self._admitted()) is None:
            return
        path.unlink(missing_ok=True)
        self._answer(200)

    def _admitted(self) -> Path | None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.refusals:
            self.server.refusals -= 1
            self._answer(503)
            return None
        expected = "Basic " + base64.b64encode(f"{USER}:{self.server.password}".encode()).decode()
        if not hmac.compare_digest(self.headers.get("Authorization", ""), expected):
            self._answer(401)
            return None
        path = self.server.root / unquote(urlsplit(self.path).path).strip("/")
        # Like the real server: packs lie in folders of two digits on its disk.
        sharded = path.parent / path.name[:2] / path.name
        return sharded if path.parent.name == "data" and sharded.is_file() else path

    def _listing(self, path: Path) -> None:
        files = sorted(one for one in path.rglob("*") if one.is_file())
        listed: list[Any] = [one.name for one in files]
        kind = "application/json"
        if self.server.with_version_2 and self.headers.get("Accept") == _V2:
            listed = [{"name": one.name, "size": one.stat().st_size} for one in files]
            kind = _V2
        self._answer(200, b"<html>" if self.server.garbled else json.dumps(listed).encode(), kind)

    def _content(self, data: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, data)
            return
        first = int(wanted[1])
        last = min(int(wanted[2] or len(data)), len(data) - 1)
        if first > last:
            self._answer(416)
            return
        self._answer(206, data[first : last + 1], span=f"bytes {first}-{last}/{len(data)}")

    def _answer(
        self, status: int, body: bytes = b"", kind: str = "binary/octet-stream", span: str = "", length: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Content-Type", kind)
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def rest_server(root: Path) -> Iterator[RestServer]:
    """A REST server for the time of the context."""
    server = RestServer(root)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """URL of an S3 server in a process of its own."""
    command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        try:
            found = None
            # The end of the output ends this loop, too: a server that died is told apart from one that is slow.
            for line in process.stderr:
                found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", line)
                if found:
                    break
            assert found, "the S3 server did not start"
            # It writes a line for each request: a full pipe would stop it.
            threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
            yield found[1]
        finally:
            process.terminate()
            process.wait(10)


def authority(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and ``NOWHERE`` that signs itself, and its key (PEM files)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    places = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName(NOWHERE)]
    builder = builder.add_extension(x509.SubjectAlternativeName(places), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    pem = serialization.Encoding.PEM
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    form, open_key = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(pem, form, open_key))
    return certificate_file, key_file


def _drain(stream: Any) -> None:
    with contextlib.suppress(ValueError):
        for _ in stream:
            pass


def unused_port() -> int:
    """A port on loopback where nobody listens (now)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
