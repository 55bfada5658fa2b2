"""What is told about a restore: events as they happen and a status at any time. Printers live outside the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from active_restore.model import Lane, Task

Phase = Literal["planning", "laying", "restoring", "verifying", "done", "interrupted"]


@dataclass(frozen=True, slots=True)
class Planned:
    """The snapshot was read: this is what will be restored. ``files`` counts files with content to restore."""

    files: int
    bytes: int
    entries: int
    snapshot: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Every placeholder is in place and guarded: the system may run."""

    seconds: float


@dataclass(frozen=True, slots=True)
class FaultServed:
    """A task waited for a file and may go on."""

    path: bytes
    task: Task
    waited_ms: float
    lane: Lane


@dataclass(frozen=True, slots=True)
class Refused:
    """A file cannot be restored; tasks that open it get this errno. ``detail`` says why."""

    path: bytes
    errno: int
    detail: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something people should know that is not an error (metadata that could not be set, source unreachable...)."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end. ``files`` and ``bytes`` are what was restored, ``refused`` how many files could not be."""

    files: int
    bytes: int
    faults: int
    refused: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task that waits now."""

    path: bytes
    task: Task
    waited_ms: float


@dataclass(frozen=True, slots=True)
class LaneCount:
    """What came by one lane."""

    files: int = 0
    bytes: int = 0


ThrottleReason = Literal["free", "disk", "processor", "memory", "demand"]


@dataclass(frozen=True, slots=True)
class Throttled:
    """Manners of the background now: why it yields (or is free), its rate (0: all it can), and how many workers may work.

    ``by`` is what tells others' requests from ours: ``bpf``, ``counts`` (an estimate), or nothing before the background runs.
    """

    reason: ThrottleReason = "free"
    rate_bytes_per_s: int = 0
    workers: int = 0
    by: str = ""


@dataclass(frozen=True, slots=True)
class PredictionCount:
    """What became of one kind of guess: ``made`` is how many, ``hit`` how many were there in time, ``late`` how many not.

    ``wasted`` is how many nobody wanted, ``dropped`` how many were not allowed, ``allowance`` how many may be open at once.
    """

    made: int = 0
    hit: int = 0
    late: int = 0
    wasted: int = 0
    dropped: int = 0
    allowance: int = 0


@dataclass(frozen=True, slots=True)
class RangeCount:
    """Files by range that are not finished: how many, their bytes, and how many of these are there.

    ``mechanism`` is what lets tasks fault by range; empty where nothing does, or where no file is by range.
    ``bytes_wanted`` came because tasks wanted them, or were likely to want them next; of finished files, too.
    ``windows``: who maps a part of one waits just for that part.
    """

    mechanism: str = ""
    files: int = 0
    bytes_total: int = 0
    bytes_present: int = 0
    bytes_wanted: int = 0
    windows: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """The whole state at one moment. ``eta_s`` is ``None`` while nothing honest can be said.

    ``bytes_done`` are of files that are complete and durable, ``bytes_underway`` are written, of files that are not.
    ``interceptor_reason``: why tasks are held by that one, where there is something to say.
    """

    phase: Phase
    target: str
    source: str
    snapshot: str
    interceptor: str
    seconds: float
    files_total: int = 0
    bytes_total: int = 0
    files_done: int = 0
    bytes_done: int = 0
    bytes_underway: int = 0
    refused: int = 0
    faults: int = 0
    rate_bytes_per_s: float = 0.0
    eta_s: float | None = None
    paused: bool = False
    limit_bytes_per_s: int = 0
    source_unreachable_s: float = 0.0
    lanes: dict[str, LaneCount] = field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()
    predictions: dict[str, PredictionCount] = field(default_factory=dict)
    throttle: Throttled = Throttled()
    ranges: RangeCount = RangeCount()
    interceptor_reason: str = ""

    @property
    def bytes_there(self) -> int:
        """What progress is measured by."""
        return min(self.bytes_done + self.bytes_underway, self.bytes_total)


@dataclass(frozen=True, slots=True)
class Progress:
    """A status that goes out by itself, about once a second."""

    status: Status


Event = Planned | Ready | FaultServed | Refused | Notice | Done | Progress


class Reporter(Protocol):
    """Takes events. Called from several threads; must not block for long and must not raise."""

    def event(self, event: Event) -> None:
        """One thing that happened."""


class Served(Protocol):
    """Is told of each row that tasks opened, after they went on; must not block."""

    def __call__(self, row: int, *, was_there: bool) -> None:
        """``was_there``: its content was complete before the task came."""
