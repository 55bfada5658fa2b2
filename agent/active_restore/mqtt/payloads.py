"""What is published, version 1. The JSON schemas in ``schema/`` are made from these classes; see ``schema``.

Fields may be added within a version; one that goes away or changes its meaning is a new version. Times are seconds since the
epoch, sizes bytes. Text may have been a file name: treat it as untrusted.
"""

from __future__ import annotations

import errno as errnos
import re
from typing import Any, Final, Literal

import msgspec

from active_restore.control.names import path_fields, plain

VERSION: Final = 1
Format = Literal["json", "msgpack"]
CONTENT_TYPE: dict[Format, str] = {"json": "application/json", "msgpack": "application/msgpack"}
Outcome = Literal["done", "partly", "interrupted", "failed"]
_USER_INFO = re.compile(r"(://[^/\s:@]*):[^/\s@]*@")


class Step(msgspec.Struct, frozen=True):
    """A phase and when it began."""

    phase: str
    time: float


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Retained on ``state``; also the last will, then with ``online`` false and phase ``lost``."""

    version: Literal[1] = VERSION
    node: str
    time: float
    online: bool
    phase: str
    target: str
    source: str = ""
    snapshot: str = ""
    restore_id: str = ""
    interceptor: str = ""
    agent: str
    paused: bool = False
    limit_bytes_per_s: int = 0
    ready_after_s: float | None = None
    accepts_commands: bool = False
    timeline: list[Step] = []


class LaneSum(msgspec.Struct, frozen=True):
    """What came by one lane."""

    files: int
    bytes: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Retained on ``progress``, every ``progress_interval_s``. ``waiting`` is how many tasks wait now."""

    version: Literal[1] = VERSION
    time: float
    phase: str
    seconds: float
    percent: float
    files_total: int
    files_done: int
    bytes_total: int
    bytes_done: int
    rate_bytes_per_s: float
    eta_s: float | None
    faults: int
    refused: int
    waiting: int
    longest_wait_ms: float
    paused: bool
    limit_bytes_per_s: int
    source_unreachable_s: float
    lanes: dict[str, LaneSum]


class Wait(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task that waits, or that has waited. ``path_b64`` is there where ``path`` does not give the bytes back."""

    path: str
    path_b64: str | None = None
    comm: str
    tid: int
    tgid: int
    waited_ms: float


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """On ``faults``, at most once in ``faults_interval_s``: who waits, and the longest waits that have ended since the last."""

    version: Literal[1] = VERSION
    time: float
    waiting: list[Wait]
    waiting_total: int
    served: list[Wait]
    served_total: int
    served_ms: float
    faults_total: int


class RefusedFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file that cannot be restored."""

    path: str
    path_b64: str | None = None
    errno: int
    errno_name: str
    detail: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The error that ended a restore, as the command line tells it."""

    code: str
    message: str
    hint: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Retained on ``report`` when a restore has ended: how. Of the refused files the first 100 are named."""

    version: Literal[1] = VERSION
    node: str
    time: float
    outcome: Outcome
    target: str
    source: str
    snapshot: str
    restore_id: str
    files: int
    bytes: int
    faults: int
    refused: int
    seconds: float
    ready_after_s: float | None
    longest_wait_ms: float
    refused_files: list[RefusedFile]
    error: Failure | None
    timeline: list[Step]


Payload = State | Progress | Faults | Report
_CLASSES: dict[str, type[Payload]] = {"state": State, "progress": Progress, "faults": Faults, "report": Report}


def encode(payload: Payload, how: Format) -> bytes:
    """The bytes of a payload."""
    return msgspec.json.encode(payload) if how == "json" else msgspec.msgpack.encode(payload)


def decode(kind: str, raw: bytes) -> Payload:
    """A payload that came from a broker, in either format. Raises ``msgspec.MsgspecError`` where it is none."""
    if raw[:1] == b"{":
        return msgspec.json.decode(raw, type=_CLASSES[kind])
    return msgspec.msgpack.decode(raw, type=_CLASSES[kind])


def schema(kind: str) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of one kind, for both formats."""
    (reference,), components = msgspec.json.schema_components([_CLASSES[kind]], ref_template="#/$defs/{name}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": kind, **reference, "$defs": components}


def wait(path: bytes, comm: str, tid: int, tgid: int, waited_ms: float) -> Wait:
    """A wait as it is told."""
    return Wait(**path_fields(path), comm=plain(comm), tid=tid, tgid=tgid, waited_ms=round(waited_ms, 3))


def refused(path: bytes, errno: int, detail: str) -> RefusedFile:
    """A refused file as it is told."""
    name = errnos.errorcode.get(errno, "")
    return RefusedFile(**path_fields(path), errno=errno, errno_name=name, detail=without_secrets(detail))


def without_secrets(text: str) -> str:
    """Text that any encoder takes, without the passwords of URLs in it."""
    return _USER_INFO.sub(r"\1@", plain(text))
