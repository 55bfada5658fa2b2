"""What the controller sees and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from active_restore.restore.progress import ThrottleReason


class Load(NamedTuple):
    """What happened since the last look. "Others" are all tasks but ours; stalls are shares of the time, 0 to 1.

    ``latency_us`` is the mean of the disk requests of others that ended, ``tail_us`` what one in twenty exceeded; both are
    0 where that is not known. ``met`` counts those of them that met requests of ours, or what the
    kernel writes, for whomever. ``demand`` counts tasks that waited for files. ``free_share`` is memory nobody uses.
    """

    seconds: float
    moved_bytes: int = 0
    requests: int = 0
    latency_us: float = 0.0
    tail_us: float = 0.0
    depth: int = 0
    met: int = 0
    cpu_stall: float = 0.0
    memory_stall: float = 0.0
    demand: int = 0
    free_share: float = 1.0

    @property
    def waiting(self) -> float:
        """How many tasks of others wait for our disks at a time, on average: 0.1 is somebody for a tenth of the time."""
        return self.requests * self.latency_us / 1e6 / self.seconds


@dataclass(frozen=True, slots=True)
class Decision:
    """``rate_bytes_per_s`` is 0 for no limit and else never below the minimum; ``workers`` is at least 1.

    ``meek`` workers are to leave the processors to whoever wants them. ``drop`` asks for what the background restored to
    leave the page cache once it is durable.
    """

    rate_bytes_per_s: int
    workers: int
    drop: bool
    reason: ThrottleReason
    meek: bool = False
