"""Kinds of values in the configuration file. A value that is not allowed is never repeated: it may hold a secret."""

from __future__ import annotations

import os
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from active_restore.errors import UsageError
from active_restore.rate import parse_size
from active_restore.schedule import parse_schedule

BROKER_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
"""Schemes of brokers, and the port where the URL names none. mqtts and wss are TLS."""
_TOPIC = re.compile(r"[^\s+#/\0]+(/[^\s+#/\0]+)*")


def _limit(value: object) -> object:
    """A limit is kept as it was written; a bare number is bytes per second."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        try:
            parse_schedule(value)
        except UsageError:
            raise ValueError("not a limit") from None
    return value


def _absolute(text: str) -> str:
    if not os.path.isabs(text) or "\0" in text:
        raise ValueError("not an absolute path")
    return os.path.normpath(text)


def broker_url(text: str) -> str:
    """A broker's URL without a password in it. Raises ``ValueError``, which does not repeat the URL."""
    try:
        parts = urlsplit(text)
        fine = parts.scheme in BROKER_PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or parts.query or parts.fragment or (parts.path.strip("/") and not parts.scheme.startswith("ws")):
        raise ValueError("not the URL of a broker")
    if parts.password is not None:
        raise ValueError("a password in the URL would be seen by others: put it into a file and name that with password_file")
    return text


def _topic(text: str) -> str:
    if not _TOPIC.fullmatch(text):
        raise ValueError("not a topic")
    return text


Limit = Annotated[
    str, BeforeValidator(_limit), Field(description='like "50MB/s", by hours "20MiB/s 08:00-18:00, 50MB/s", or 0 for no limit')
]


def _size(text: str) -> str:
    try:
        parse_size(text)
    except UsageError:
        raise ValueError("not a size") from None
    return text


Size = Annotated[str, AfterValidator(_size), Field(description='like "16MiB" or "50MB"')]
AbsolutePath = Annotated[str, AfterValidator(_absolute), Field(description="an absolute path")]
BrokerUrl = Annotated[
    str, AfterValidator(broker_url), Field(description="mqtt://[USER@]HOST[:PORT], or mqtts://, ws://, wss://")
]
Crowd = Annotated[
    tuple[Annotated[str, Field(pattern=r"^(command:[^\x00]{1,15}|cgroup:(/[^/\x00]+)+)$")], ...],
    Field(strict=False, description='a list like ["command:updatedb", "cgroup:/system.slice/backup.service"]'),
]
CredentialName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9._-]+$", description="the name of a systemd credential: letters, digits, . _ -")
]
HostName = Annotated[str, Field(pattern=r"^[^\s+#/\x00]+$", description="one level of a topic: no /, +, # or white space")]
TopicPrefix = Annotated[
    str, AfterValidator(_topic), Field(description='a topic like "active-restore" or "site/a", without + and #')
]
