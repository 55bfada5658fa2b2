"""A simulated machine for the controller: a disk, somebody who uses it, and a background that moves what it may."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from active_restore.restore.throttle.control import State, step
from active_restore.restore.throttle.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.restore.throttle.load import Decision

LOOK_S = 0.2
WORKERS = 2


@dataclass(frozen=True)
class Disk:
    """``capacity`` in bytes per second. At full load of ours others take ``1 + slows`` times as long, ``noise`` is the standard
    deviation of the logarithm of what a look says, whoever is there. At our full load ``crosses`` of others'
    requests meet ours.
    """

    capacity: float
    usual_us: float = 100.0
    slows: float = 3.0
    noise: float = 0.0
    crosses: float = 0.0


@dataclass
class Look:
    """What happened in one look."""

    time_s: float
    rate: float
    moved: float
    harm: float
    met: int
    decision: Decision


@dataclass
class Machine:
    """``others`` gives requests per second of others at a time."""

    disk: Disk
    others: Callable[[float], float]
    seed: int = 0
    state: State = field(default_factory=State)
    time_s: float = 0.0
    rate: float = 0.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def run(self, seconds: float) -> list[Look]:
        """Look after look."""
        return [self._look() for _ in range(int(seconds / LOOK_S))]

    def _look(self) -> Look:
        self.time_s += LOOK_S
        disk = self.disk
        moved = min(self.rate or disk.capacity, disk.capacity)
        harm = disk.slows * moved / disk.capacity
        requests = int(self.others(self.time_s) * LOOK_S)
        latency = disk.usual_us * (1 + harm) * self.random.lognormvariate(0, disk.noise) if requests else 0.0
        share = min(disk.crosses * moved / disk.capacity, 1.0)
        met = sum(self.random.random() < share for _ in range(requests)) if share else 0
        load = Load(LOOK_S, int(moved * LOOK_S), requests, latency, latency * 2, met=met)
        self.state, decision = step(self.state, load, WORKERS)
        self.rate = decision.rate_bytes_per_s
        return Look(self.time_s, self.rate or disk.capacity, moved, harm if requests else 0.0, met, decision)
