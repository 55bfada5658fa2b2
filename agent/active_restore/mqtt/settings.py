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
from active_restore.settings.values import BROKER_PORTS, broker_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from active_restore.mqtt.payloads import Format
    from active_restore.settings.tables import MqttTable

Protocol = Literal["auto", "5", "3.1.1"]
_HINT = "write it like mqtt://user@broker:1883 or mqtts://broker (TLS), the password's file is [mqtt] password_file"
_PERSONAL = ("username", "password_file", "password_credential", "ca_file", "cert_file", "key_file")
_CREDENTIAL = "mqtt-password"
_MAX_PASSWORD_BYTES = 65535  # MQTT 5, 3.1.3.6


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is and who we are to it. ``tls`` is a context that has everything loaded; ``None`` for none.

    ``ws_path`` is the path of its websocket, ``None`` for a plain stream.
    """

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    ws_path: str | None = None
    protocol: Protocol = "auto"
    keepalive_s: int = 30

    def __str__(self) -> str:
        scheme = "mqtt" if self.ws_path is None else "ws"
        return f"{scheme}{'s' if self.tls else ''}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about publishing. Intervals are the shortest time between two messages of a kind, in seconds.

    ``discovery`` is the prefix that Home Assistant listens to, ``""`` for none.
    """

    broker: Broker
    topics: Topics
    format: Format = "json"
    qos: int = 1
    progress_interval_s: float = 1.0
    faults_interval_s: float = 1.0
    accept_commands: bool = False
    discovery: str = ""


def from_table(table: MqttTable, env: Mapping[str, str]) -> Settings:
    """The settings of a table that names a broker. Passwords and certificates are read now. Raises ``UsageError``."""
    assert table.broker is not None
    parts = urlsplit(table.broker)
    assert parts.hostname is not None
    secure = parts.scheme in ("mqtts", "wss")
    broker = Broker(
        host=parts.hostname,
        port=parts.port or BROKER_PORTS[parts.scheme],
        user=unquote(parts.username) if parts.username else table.username,
        password=find_password(table, env),
        tls=tls_context(table.ca_file, table.cert_file, table.key_file) if secure else None,
        ws_path=(parts.path or "/mqtt") if parts.scheme.startswith("ws") else None,
        keepalive_s=table.keepalive,
    )
    return Settings(
        broker=broker,
        topics=Topics(table.topic_prefix, table.host or machine_name()),
        format=table.format,
        qos=table.qos,
        progress_interval_s=table.progress_interval,
        faults_interval_s=table.faults_interval,
        accept_commands=table.commands,
        discovery=table.discovery_prefix if table.discovery else "",
    )


def with_broker(table: MqttTable, url: str) -> MqttTable:
    """The table with another broker, which does not learn who we are to the one in the table. Raises ``UsageError``."""
    try:
        broker_url(url)
    except ValueError as error:
        raise UsageError(f"--mqtt: {error}", _HINT) from None
    if table.broker is not None and urlsplit(table.broker).netloc.rpartition("@")[2] != urlsplit(url).netloc.rpartition("@")[2]:
        table = table.model_copy(update=dict.fromkeys(_PERSONAL))
    return table.model_copy(update={"broker": url})


def find_password(table: MqttTable, env: Mapping[str, str]) -> str | None:
    """The password of the table, else of the environment, else of the systemd credential ``mqtt-password``.

    Raises ``UsageError`` where a file is named that cannot be read.
    """
    credentials = env.get("CREDENTIALS_DIRECTORY")
    named = table.password_file or env.get("ACTIVE_RESTORE_MQTT_PASSWORD_FILE")
    if table.password_credential:
        if not credentials:
            raise UsageError(
                f"the credential {table.password_credential} is not there: systemd did not start this",
                "name the password's file in ACTIVE_RESTORE_MQTT_PASSWORD_FILE",
            )
        named = str(Path(credentials) / table.password_credential)
    if named:
        return _read_password(Path(named))
    if env.get("ACTIVE_RESTORE_MQTT_PASSWORD"):
        return env["ACTIVE_RESTORE_MQTT_PASSWORD"]
    usual = Path(credentials) / _CREDENTIAL if credentials else None
    return _read_password(usual) if usual and usual.exists() else None


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
