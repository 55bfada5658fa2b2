"""What is published, version 1. The JSON schemas in ``schema/`` are made from these classes; see ``schema``.

Fields may be added within a version; one that goes away or changes its meaning is a new version. What is not known is left out,
never null: Grafana's data source breaks on a number that becomes null. Times are seconds since the epoch, sizes bytes. Text may
have been a file name: treat it as untrusted.
"""

from __future__ import annotations

import errno as errnos
import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from active_restore.control.names import path_fields, plain

VERSION: Final = 1
Format = Literal["json", "msgpack"]
CONTENT_TYPE: dict[Format, str] = {"json": "application/json", "msgpack": "application/msgpack"}
Outcome = Literal["done", "partly", "interrupted", "failed"]
# Bounds are for those who read: a payload may come from anybody who can write to the broker, and msgpack has NaN.
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Quantity = Annotated[float, Meta(ge=0, le=1e18)]
_USER_INFO = re.compile(r"(://[^/\s:@]*):[^/\s@]*@")


class Step(msgspec.Struct, frozen=True):
    """A phase and when it began."""

    phase: str
    time: Quantity


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Retained on ``state``; also the last will, then with ``online`` false and phase ``lost``."""

    version: Literal[1] = VERSION
    node: str
    time: Quantity
    online: bool
    phase: str
    target: str
    source: str = ""
    snapshot: str = ""
    restore_id: str = ""
    interceptor: str = ""
    agent: str
    paused: bool = False
    limit_bytes_per_s: Count = 0
    ready_after_s: Quantity | UnsetType = UNSET
    accepts_commands: bool = False
    timeline: list[Step] = []


class LaneSum(msgspec.Struct, frozen=True):
    """What came by one lane."""

    files: Count
    bytes: Count


class RangeSum(msgspec.Struct, frozen=True):
    """Files by range that are not finished; ``bytes_wanted`` came because tasks wanted them, of finished ones, too."""

    files: Count
    bytes_total: Count
    bytes_present: Count
    bytes_wanted: Count


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Retained on ``progress``, every ``progress_interval_s``. ``waiting`` is how many tasks wait now."""

    version: Literal[1] = VERSION
    node: str
    time: Quantity
    phase: str
    seconds: Quantity
    percent: Annotated[float, Meta(ge=0, le=100)]
    files_total: Count
    files_done: Count
    bytes_total: Count
    bytes_done: Count
    bytes_underway: Count = 0
    rate_bytes_per_s: Quantity
    eta_s: Quantity | UnsetType = UNSET
    faults: Count
    refused: Count
    waiting: Count
    longest_wait_ms: Quantity
    paused: bool
    limit_bytes_per_s: Count
    source_unreachable_s: Quantity
    lanes: dict[str, LaneSum]
    ranges: RangeSum | UnsetType = UNSET


class Wait(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task that waits, or that has waited. ``path_b64`` is there where ``path`` does not give the bytes back."""

    path: str
    path_b64: str | None = None
    comm: str
    tid: Count
    tgid: Count
    waited_ms: Quantity


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """On ``faults``, at most once in ``faults_interval_s``: who waits, and the longest waits that have ended since the last."""

    version: Literal[1] = VERSION
    node: str
    time: Quantity
    waiting: list[Wait]
    waiting_total: Count
    served: list[Wait]
    served_total: Count
    served_ms: Quantity
    faults_total: Count


class RefusedFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file that cannot be restored."""

    path: str
    path_b64: str | None = None
    errno: Count
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
    time: Quantity
    outcome: Outcome
    target: str
    source: str
    snapshot: str
    restore_id: str
    files: Count
    bytes: Count
    faults: Count
    refused: Count
    seconds: Quantity
    ready_after_s: Quantity | UnsetType = UNSET
    longest_wait_ms: Quantity
    refused_files: list[RefusedFile]
    error: Failure | UnsetType = UNSET
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
