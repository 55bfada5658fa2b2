"""One look at the machine: differences of what the kernel counts, our own share taken out."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from active_restore.linux import pressure
from active_restore.restore.throttle.counts import DiskCounts
from active_restore.restore.throttle.load import Load
from active_restore.restore.throttle.requests import NOTHING, DiskRequests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from active_restore.ebpf.blocks import BlockWatch
    from active_restore.linux.disks import Disk
    from active_restore.restore.throttle.requests import Served

# Of others: below this many processors, whoever waits for one does not wait because of them.
_FEW_PROCESSORS = 0.2


class Sensor:
    """``disks`` are those of target and source; ``workers`` gives the process ids of ours, besides this one."""

    def __init__(self, disks: Iterable[Disk], workers: Callable[[], list[int]]) -> None:
        self._disks = tuple(disks)
        self._workers = workers
        self._requests: DiskRequests | None = None
        self._counts = DiskCounts(self._disks)
        self._then = time.monotonic()
        self._stalls = pressure.stalls()
        self._user_s = pressure.user_seconds()
        self._uses = {os.getpid(): pressure.use_of(os.getpid())}
        self._moved = 0
        self._faults = 0

    @property
    def by(self) -> str:
        """What tells others' requests from ours."""
        return "bpf" if self._requests is not None else "counts"

    @property
    def suspicious(self) -> bool:
        """Whether somebody else may use our disks: worth a closer look."""
        return self._counts.suspicious

    def watch(self, blocks: BlockWatch) -> None:
        """From now on the block programs tell; ``close`` ends them."""
        self._requests = DiskRequests(blocks, self._disks)
        self._requests.own(_starts([os.getpid(), *self._workers()]))

    def look(self, moved_bytes: int, faults: int, waiting: int) -> Load:
        """What happened since the last look. ``moved_bytes`` and ``faults`` are running totals; ``waiting`` counts tasks."""
        now = time.monotonic()
        seconds = max(now - self._then, 1e-3)
        own = self._own()
        stalls, user_s = pressure.stalls(), pressure.user_seconds()
        stalled = stalls.since(self._stalls)
        others_s = max(user_s - self._user_s - own.user_s, 0.0)
        served = self._served(own, stalled.io_s, seconds)
        load = Load(
            seconds,
            max(moved_bytes - self._moved, 0),
            *served,
            cpu_stall=_others_share(min(stalled.cpu_s / seconds, 1.0), others_s, own.user_s, seconds),
            memory_stall=min(stalled.memory_s / seconds, 1.0),
            demand=max(faults - self._faults, 0) + waiting,
            free_share=pressure.free_share(),
        )
        self._then, self._stalls, self._user_s = now, stalls, user_s
        self._moved, self._faults = moved_bytes, faults
        return load

    def _served(self, own: pressure.Use, waited_s: float, seconds: float) -> Served:
        """Requests of others. An estimate is believed only where somebody waited for a disk (or the kernel does not tell)."""
        counted = self._counts.look(own, seconds)
        if self._requests is not None:
            return self._requests.look()
        return NOTHING if self._stalls.io_s and not waited_s else counted

    def _own(self) -> pressure.Use:
        """What all of ours used since the last look."""
        pids = [os.getpid(), *self._workers()]
        if self._requests is not None and self._uses.keys() != set(pids):
            self._requests.own(_starts(pids))
        uses = {pid: pressure.use_of(pid) for pid in pids}
        none = pressure.Use(0.0, 0)
        before = [self._uses.get(pid, none) for pid in uses]
        self._uses = uses
        pairs = list(zip(before, uses.values(), strict=True))
        user_s = sum(max(new.user_s - old.user_s, 0.0) for old, new in pairs)
        return pressure.Use(user_s, sum(max(new.read_bytes - old.read_bytes, 0) for old, new in pairs))

    def close(self) -> None:
        """End the programs."""
        if self._requests is not None:
            self._requests.close()


def _others_share(stall: float, others_s: float, own_s: float, seconds: float) -> float:
    """The part of the waiting for processors that others have, by how much they compute."""
    if others_s / seconds < _FEW_PROCESSORS:
        return 0.0
    return stall * others_s / (others_s + own_s)


def _starts(pids: list[int]) -> dict[int, int]:
    starts = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            starts[pid] = pressure.start_ticks(pid)
    return starts
