"""Which broker, how to get in, and what to tell it. Secrets are in here and nowhere else; ``str`` and ``repr`` hide them."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from active_restore.errors import UsageError
from active_restore.mqtt.topics import Topics, level

if TYPE_CHECKING:
    from collections.abc import Mapping

    from active_restore.mqtt.payloads import Format

Protocol = Literal["auto", "5", "3.1.1"]
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_HINT = "write it like mqtt://broker, mqtt://user@broker:1883 or mqtts://broker (TLS)"
_PASSWORD_HINT = "put it into ACTIVE_RESTORE_MQTT_PASSWORD_FILE (a file), ACTIVE_RESTORE_MQTT_PASSWORD or the configuration"
_CREDENTIAL = "mqtt-password"
_MAX_PASSWORD_BYTES = 65535  # MQTT 5, 3.1.3.6


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is and who we are to it. ``tls`` is a context that has everything loaded; ``None`` for plain TCP."""

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    protocol: Protocol = "auto"
    keepalive_s: int = 30

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about publishing. Intervals are the shortest time between two messages of a kind, in seconds.

    ``discovery`` is the prefix that Home Assistant listens to, ``""`` for none.
    """

    broker: Broker
    topics: Topics
    format: Format = "json"
    qos: Literal[0, 1, 2] = 1
    progress_interval_s: float = 1.0
    faults_interval_s: float = 1.0
    accept_commands: bool = False
    discovery: str = ""


def parse_url(url: str) -> tuple[str, int, str | None, bool]:
    """Host, port, user and whether TLS of ``mqtt[s]://[user@]host[:port]``. Raises ``UsageError``, without any secret."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError("the address of the broker is not understood", _HINT) from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise UsageError("the address of the broker is not understood", _HINT)
    if parts.password is not None:
        raise UsageError("a password does not belong into the address of the broker, where all can see it", _PASSWORD_HINT)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError("the address of the broker ends after its port", _HINT)
    user = unquote(parts.username) if parts.username else None
    return parts.hostname, port or _PORTS[parts.scheme], user, parts.scheme == "mqtts"


def find_password(env: Mapping[str, str], file: str | None = None) -> str | None:
    """The password in ``file``, else in what the environment names, else in the systemd credential ``mqtt-password``.

    Raises ``UsageError`` where a file is named that cannot be read.
    """
    named = file or env.get("ACTIVE_RESTORE_MQTT_PASSWORD_FILE")
    if named:
        return _read_password(Path(named))
    if env.get("ACTIVE_RESTORE_MQTT_PASSWORD"):
        return env["ACTIVE_RESTORE_MQTT_PASSWORD"]
    directory = env.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory) / _CREDENTIAL if directory else None
    return _read_password(credential) if credential and credential.exists() else None


def _read_password(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_PASSWORD_BYTES).decode().rstrip("\r\n")
    except OSError as error:
        raise UsageError(f"the password file {path} cannot be read: {error.strerror}", "name one that root can read") from error
    except UnicodeDecodeError:
        # Without the error that names a byte of it.
        raise UsageError(f"the password file {path} is not UTF-8 text") from None


class _Closing(ssl.SSLSocket):
    """A socket that does not outlive a handshake that failed; paho forgets it open."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def tls_context(ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None) -> ssl.SSLContext:
    """TLS 1.2 or newer, the broker's name always checked. ``ca_file`` pins: no other authority is believed then.

    All files are read now, before anything of ours may depend on what is not restored yet. Raises ``UsageError``.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
        context.sslsocket_class = _Closing
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert_file:
            # Without a terminal to ask: a key with a passphrase is an error here.
            context.load_cert_chain(cert_file, key_file or None, password=lambda: "")
    except OSError as error:  # ssl.SSLError is one
        names = ", ".join(name for name in (ca_file, cert_file, key_file) if name)
        why = error.strerror or str(error) if not isinstance(error, ssl.SSLError) else "not PEM, or the key does not fit"
        raise UsageError(f"the certificates for the broker cannot be used ({names}): {why}", "check these files") from error
    return context


def machine_name() -> str:
    """What this machine is called in topics: its host name without the domain's first dot and all after it."""
    return level(socket.gethostname().partition(".")[0] or "localhost")
