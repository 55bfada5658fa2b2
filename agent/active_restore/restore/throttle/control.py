"""The controller: ``step`` takes a state and a load and gives the next state and a decision. No clock, no I/O, no chance.

Three questions, each with two thresholds so that nothing flutters between them:
do others use our disks (then the rate is found by trying, see ``search``), are they short of processors, is memory short?
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from active_restore.restore.throttle.load import Decision
from active_restore.restore.throttle.search import Search, begin, go_on

if TYPE_CHECKING:
    from active_restore.restore.progress import ThrottleReason
    from active_restore.restore.throttle.load import Load

MIN_RATE = 1 << 20
"""Bytes per second that the background always gets, whatever the machine does."""
_MIN_SHARE = 0.002
# Requests per second of others: at the first number somebody may use the disk, below the second nobody does.
_BUSY_PER_S, _QUIET_PER_S = 40.0, 20.0
# How many of them wait for it at a time. A log that is written now and then is no use that is worth a slower restore; who is
# slowed down by us waits longer, and so is seen. At our minimum he waits less: the second one is lower.
_BUSY_WAITING, _QUIET_WAITING = 0.03, 0.01
_WAITING_SMOOTH_S = 3.0
# Shorter than this is a moment's work that nobody waits for long.
_BUSY_S = 0.3
_FIRST_QUIET_S, _LAST_QUIET_S = 1.0, 30.0
_REGARD = 10.0
_CPU_ON, _CPU_OFF = 0.35, 0.15
_MEMORY_ON, _MEMORY_OFF = 0.10, 0.02
_DEMAND_HOLD_S = 1.0
_SCARCE, _PLENTY = 0.20, 0.30
_SMOOTH_S = 1.0
_SLOW_S = 5.0
_BEST_FADES_S = 600.0


@dataclass(frozen=True, slots=True)
class State:
    """What the controller remembers. ``search`` is there while others use the disk. Rates in bytes per second."""

    search: Search | None = None
    quiet_s: float = 0.0
    present_s: float = 0.0
    needed_quiet_s: float = _FIRST_QUIET_S
    free_s: float = 0.0
    busy_s: float = 0.0
    requests_per_s: float = 0.0
    waiting: float = 0.0
    slow_s: float = math.inf
    speed: float = 0.0
    best: float = 0.0
    cpu: Latch = field(default_factory=lambda: Latch())
    memory: Latch = field(default_factory=lambda: Latch())
    demand_s: float = math.inf
    drop: bool = False


@dataclass(frozen=True, slots=True)
class Latch:
    """A smoothed share that turns on at one value and off at a lower one."""

    level: float = 0.0
    on: bool = False

    def fed(self, share: float, seconds: float, limits: tuple[float, float]) -> Latch:
        """The next one. ``limits``: on from the first, off below the second."""
        level = _smoothed(self.level, share, seconds)
        return Latch(level, level >= limits[0] or (self.on and level >= limits[1]))


def step(state: State, load: Load, workers: int) -> tuple[State, Decision]:
    """One look. ``workers`` is how many there are. Every decision lets the background move at least ``MIN_RATE``."""
    state = replace(
        state,
        cpu=state.cpu.fed(load.cpu_stall, load.seconds, (_CPU_ON, _CPU_OFF)),
        memory=state.memory.fed(load.memory_stall, load.seconds, (_MEMORY_ON, _MEMORY_OFF)),
        demand_s=0.0 if load.demand else state.demand_s + load.seconds,
        requests_per_s=_smoothed(state.requests_per_s, load.requests / load.seconds, load.seconds),
        waiting=_smoothed(state.waiting, min(load.waiting, 1.0), load.seconds, _WAITING_SMOOTH_S),
        drop=load.free_share < (_PLENTY if state.drop else _SCARCE),
    )
    state = _measured(state, load)
    state = _searched(state, load) if state.search is not None else _watched(state, load)
    return state, _decision(state, max(workers, 1))


def floor(state: State) -> float:
    """The guaranteed minimum: a five-hundredth of what the background can do alone, and never less than ``MIN_RATE``."""
    return max(MIN_RATE, state.best * _MIN_SHARE)


def _measured(state: State, load: Load) -> State:
    """How fast the background is, and was at its best; that fades slowly, but not while others are in its way."""
    speed = _smoothed(state.speed, load.moved_bytes / load.seconds, load.seconds)
    fading = 1.0 if state.search else math.exp(-load.seconds / _BEST_FADES_S)
    slow_s = 0.0 if speed < MIN_RATE else state.slow_s + load.seconds
    return replace(state, speed=speed, slow_s=slow_s, best=max(state.best * fading, speed))


def _watched(state: State, load: Load) -> State:
    """Free so far."""
    free_s = state.free_s + load.seconds
    are_many = load.requests / load.seconds >= _BUSY_PER_S or state.requests_per_s >= _BUSY_PER_S
    is_busy = are_many and load.requests and state.waiting >= _BUSY_WAITING
    busy_s = state.busy_s + load.seconds if is_busy else 0.0
    if busy_s < _BUSY_S:
        return replace(state, free_s=free_s, busy_s=busy_s)
    # Somebody who comes again and again shortly after we went off must not find us off again each time.
    soon = free_s < 10 * state.needed_quiet_s
    needed = state.needed_quiet_s * (2.0 if soon and state.free_s else 0.5)
    needed = min(max(needed, _FIRST_QUIET_S), _LAST_QUIET_S)
    return replace(
        state, search=begin(floor(state)), quiet_s=0.0, present_s=busy_s, free_s=0.0, busy_s=0.0, needed_quiet_s=needed
    )


def _searched(state: State, load: Load) -> State:
    """Somebody used the disk a moment ago."""
    assert state.search is not None
    is_quiet = load.requests / load.seconds < _QUIET_PER_S or state.waiting < _QUIET_WAITING
    quiet_s = state.quiet_s + load.seconds if is_quiet else 0.0
    present_s = state.present_s + (0.0 if is_quiet else load.seconds)
    # Whoever stays for a moment alone is not waited for as long as one who lives here.
    if quiet_s >= min(state.needed_quiet_s, max(present_s * _REGARD, _FIRST_QUIET_S)):
        return replace(state, search=None, quiet_s=0.0, free_s=0.0, requests_per_s=0.0, waiting=0.0)
    search = go_on(state.search, load, floor(state), state.best)
    return replace(state, search=search, quiet_s=quiet_s, present_s=present_s)


def _decision(state: State, workers: int) -> Decision:
    rate, count, reason = _pace(state, workers)
    if state.demand_s < _DEMAND_HOLD_S and workers > 1:
        reason = "demand" if reason == "free" else reason
        count = min(count, workers // 2)
    # Where the processors leave nothing to who asks for nothing, our minimum is not to be had that way.
    meek = state.cpu.on and state.slow_s >= _SLOW_S
    return Decision(math.ceil(rate), count, state.drop or state.memory.on, reason, meek)


def _pace(state: State, workers: int) -> tuple[float, int, ThrottleReason]:
    """Rate (0: free), workers and why; what asks for least wins."""
    if state.memory.on:
        return floor(state), 1, "memory"
    wanted: tuple[float, int, ThrottleReason] = (0.0, workers, "free")
    if state.search is not None:
        rate = state.search.rate
        wanted = (rate, workers if rate > state.best / 2 else 1, "disk")
    if state.cpu.on and state.search is None:
        # Not fewer workers: whoever asks for nothing may have all that nobody else wants.
        return (0.0, workers, "processor")
    return wanted


def _smoothed(before: float, now: float, seconds: float, memory_s: float = _SMOOTH_S) -> float:
    return now + (before - now) * math.exp(-seconds / memory_s)
