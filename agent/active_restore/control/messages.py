"""The words of the control protocol: what a client may ask and what the agent answers, version 1.

A request is one line ``{"version": 1, "command": "status"}``, an answer one line ``{"version": 1, "ok": true, ...}``.
Requests are checked strictly (unknown fields are errors); answers may gain fields without a new version.
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from active_restore.control.names import path_fields, plain
from active_restore.errors import ActiveRestoreError, UsageError
from active_restore.model import Task
from active_restore.restore.progress import (
    LaneCount,
    Phase,
    PredictionCount,
    RangeCount,
    Status,
    Throttled,
    ThrottleReason,
    Waiting,
)

VERSION = 1
MAX_LINE_BYTES = 2 << 20
"""Longest request; one with ``MAX_PATHS`` paths of the greatest length fits."""
MAX_ANSWER_BYTES = 8 << 20
"""Longest answer; a status with ``MAX_WAITING`` paths of the greatest length fits."""
MAX_PATHS = 64
MAX_WAITING = 256
MAX_WINDOWS = 64
_MAX_PATH_BYTES = 4096  # PATH_MAX
_MAX_LIMIT = 1 << 62
_NESTED = ("lanes", "waiting", "throttle", "predictions", "ranges")


class PathText(BaseModel):
    """A path relative to the target; see ``names.PathFields``."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(max_length=4 * _MAX_PATH_BYTES)
    path_b64: str | None = Field(default=None, max_length=2 * _MAX_PATH_BYTES)

    @classmethod
    def of(cls, path: bytes) -> PathText:
        """The text of these bytes."""
        return cls(**path_fields(path))

    def to_bytes(self) -> bytes:
        """The bytes of this text. Raises ``UsageError`` where it is no path."""
        try:
            raw = self.path.encode() if self.path_b64 is None else base64.b64decode(self.path_b64, validate=True)
        except ValueError as error:
            raise UsageError(f"path_b64 is not base64: {error}") from error
        if b"\0" in raw or len(raw) > _MAX_PATH_BYTES:
            raise UsageError("a path has a NUL in it or is longer than 4096 bytes")
        return raw


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    version: Literal[1] = 1


class StatusRequest(_Request):
    """Ask for the status."""

    command: Literal["status"] = "status"


class PromoteRequest(_Request):
    """Move these paths, and all below them, to the predicted lane."""

    command: Literal["promote"] = "promote"
    paths: list[PathText] = Field(min_length=1, max_length=MAX_PATHS)


class PauseRequest(_Request):
    """Stop the background lane; faults are served all the same."""

    command: Literal["pause"] = "pause"


class ContinueRequest(_Request):
    """Let the background lane go on."""

    command: Literal["continue"] = "continue"


class WindowText(BaseModel):
    """A limit for some hours of the day, see ``config.LimitWindow``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    begin_minute: int = Field(ge=0, lt=24 * 60)
    end_minute: int = Field(ge=0, le=24 * 60)
    bytes_per_s: int = Field(ge=0, le=_MAX_LIMIT)


class LimitRequest(_Request):
    """Limit the background lane; 0 takes the limit away. In a window its own limit holds, the first that fits."""

    command: Literal["limit"] = "limit"
    bytes_per_s: int = Field(ge=0, le=_MAX_LIMIT)
    windows: list[WindowText] = Field(default=[], max_length=MAX_WINDOWS)


class StopRequest(_Request):
    """End the agent as Ctrl-C does; ``resume`` goes on."""

    command: Literal["stop"] = "stop"


Request = Annotated[
    StatusRequest | PromoteRequest | PauseRequest | ContinueRequest | LimitRequest | StopRequest,
    Field(discriminator="command"),
]
_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


class TaskText(BaseModel):
    """A task, see ``model.Task``."""

    tid: int
    tgid: int
    comm: str

    @classmethod
    def of(cls, task: Task) -> TaskText:
        """The text of a task."""
        return cls(tid=task.tid, tgid=task.tgid, comm=plain(task.comm))


class WaitingText(PathText):
    """A task that waits, see ``progress.Waiting``."""

    model_config = ConfigDict(extra="ignore")
    task: TaskText
    waited_ms: float

    @classmethod
    def waiting(cls, waiting: Waiting) -> WaitingText:
        """The text of a task that waits."""
        return cls(**path_fields(waiting.path), task=TaskText.of(waiting.task), waited_ms=waiting.waited_ms)


class LaneText(BaseModel):
    """What came by a lane, see ``progress.LaneCount``."""

    files: int
    bytes: int


class PredictionText(BaseModel):
    """What became of a kind of prediction, see ``progress.PredictionCount``."""

    made: int
    hit: int
    late: int
    wasted: int
    dropped: int
    allowance: int


class ThrottleText(BaseModel):
    """Manners of the background, see ``progress.Throttled``."""

    reason: ThrottleReason = "free"
    rate_bytes_per_s: int = 0
    workers: int = 0
    by: str = ""


class RangesText(BaseModel):
    """Files by range, see ``progress.RangeCount``."""

    mechanism: str = ""
    files: int = 0
    bytes_total: int = 0
    bytes_present: int = 0
    bytes_wanted: int = 0
    windows: bool = False


class StatusText(BaseModel):
    """A status, see ``progress.Status``; ``target`` and ``source`` are for people."""

    phase: Phase
    target: str
    source: str
    snapshot: str
    interceptor: str
    seconds: float
    files_total: int
    bytes_total: int
    files_done: int
    bytes_done: int
    bytes_underway: int = 0
    refused: int
    faults: int
    rate_bytes_per_s: float
    eta_s: float | None = None
    paused: bool
    limit_bytes_per_s: int
    source_unreachable_s: float
    lanes: dict[str, LaneText]
    waiting: list[WaitingText]
    predictions: dict[str, PredictionText] = {}
    throttle: ThrottleText = ThrottleText()
    ranges: RangesText = RangesText()
    interceptor_reason: str = ""

    @classmethod
    def of(cls, status: Status) -> StatusText:
        """The text of a status; of many waiting tasks the first ``MAX_WAITING`` are told."""
        return cls(
            phase=status.phase,
            target=plain(status.target),
            source=plain(status.source),
            snapshot=plain(status.snapshot),
            interceptor=status.interceptor,
            interceptor_reason=status.interceptor_reason,
            seconds=status.seconds,
            files_total=status.files_total,
            bytes_total=status.bytes_total,
            files_done=status.files_done,
            bytes_done=status.bytes_done,
            bytes_underway=status.bytes_underway,
            refused=status.refused,
            faults=status.faults,
            rate_bytes_per_s=status.rate_bytes_per_s,
            eta_s=status.eta_s,
            paused=status.paused,
            limit_bytes_per_s=status.limit_bytes_per_s,
            source_unreachable_s=status.source_unreachable_s,
            lanes={name: LaneText(files=lane.files, bytes=lane.bytes) for name, lane in status.lanes.items()},
            waiting=[WaitingText.waiting(waiting) for waiting in status.waiting[:MAX_WAITING]],
            predictions={name: PredictionText(**dataclasses.asdict(count)) for name, count in status.predictions.items()},
            throttle=ThrottleText(**dataclasses.asdict(status.throttle)),
            ranges=RangesText(**dataclasses.asdict(status.ranges)),
        )

    def to_status(self) -> Status:
        """The status of this text."""
        plain_fields = {name: getattr(self, name) for name in StatusText.model_fields if name not in _NESTED}
        return Status(
            **plain_fields,
            throttle=Throttled(**self.throttle.model_dump()),
            ranges=RangeCount(**self.ranges.model_dump()),
            lanes={name: LaneCount(lane.files, lane.bytes) for name, lane in self.lanes.items()},
            waiting=tuple(
                Waiting(text.to_bytes(), Task(text.task.tid, text.task.tgid, text.task.comm), text.waited_ms)
                for text in self.waiting
            ),
            predictions={name: PredictionCount(**count.model_dump()) for name, count in self.predictions.items()},
        )


class ErrorText(BaseModel):
    """An ``ActiveRestoreError``; ``code`` names its class."""

    code: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: ActiveRestoreError) -> ErrorText:
        """The text of an error."""
        return cls(code=error.code, message=plain(str(error)), hint=plain(error.hint))

    def to_error(self) -> ActiveRestoreError:
        """An error of the class that was raised; of the base class where this version does not know it."""
        known = {cls.code: cls for cls in ActiveRestoreError.__subclasses__()}
        return known.get(self.code, ActiveRestoreError)(self.message, self.hint)


class Answer(BaseModel):
    """What comes back. Exactly one of the optional fields is set where the command gives something back."""

    version: int = VERSION
    ok: bool = True
    status: StatusText | None = None
    promoted: int | None = None
    error: ErrorText | None = None

    def to_line(self) -> bytes:
        """One line with its end."""
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


def parse_request(line: bytes) -> Request:
    """Raises ``UsageError`` that says in one line what is wrong with it."""
    try:
        return _REQUEST.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "request"
        raise UsageError(
            f"request not understood: {where}: {first['msg']}",
            f"this agent speaks version {VERSION} of the control protocol",
        ) from error


def request_line(request: Request) -> bytes:
    """One line with its end."""
    return request.model_dump_json(exclude_none=True).encode() + b"\n"
