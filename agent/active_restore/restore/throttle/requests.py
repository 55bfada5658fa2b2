"""Requests of others on our disks, as the block programs tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from active_restore.ebpf.blocks import slot_start_us

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from active_restore.ebpf.blocks import BlockWatch
    from active_restore.linux.disks import Disk

_TAIL = 0.95


class Served(NamedTuple):
    """Requests of others that ended, and how: see ``load.Load``."""

    requests: int
    latency_us: float
    tail_us: float
    depth: int
    met: int = 0


NOTHING = Served(0, 0.0, 0.0, 0)


class DiskRequests:
    """Differences between two looks at the counts of the block programs. Owns ``blocks``."""

    def __init__(self, blocks: BlockWatch, disks: Sequence[Disk]) -> None:
        self._blocks = blocks
        self._numbers = [disk.kernel_number for disk in disks]
        self._before = [blocks.load(number) for number in self._numbers]

    def own(self, processes: Mapping[int, int]) -> None:
        """See ``BlockWatch.own``."""
        self._blocks.own(processes)

    def look(self) -> Served:
        """All our disks together."""
        count = nanoseconds = depth = met = 0
        slots = [0] * len(self._before[0]["foreign_latency_us"]) if self._before else []
        now = [self._blocks.load(number) for number in self._numbers]
        for old, new in zip(self._before, now, strict=True):
            count += new["foreign_completed"] - old["foreign_completed"]
            nanoseconds += new["foreign_latency_ns"] - old["foreign_latency_ns"]
            met += new["foreign_met"] - old["foreign_met"]
            depth += max(new["foreign_issued"] - new["foreign_completed"], 0)
            pairs = zip(slots, old["foreign_latency_us"], new["foreign_latency_us"], strict=True)
            slots = [sum_ + (b - a) for sum_, a, b in pairs]
        self._before = now
        return Served(count, nanoseconds / count / 1000 if count else 0.0, tail_us(slots), depth, met)

    def close(self) -> None:
        """End the programs."""
        self._blocks.close()


def tail_us(slots: Sequence[int]) -> float:
    """What one in twenty exceeds, by a histogram of the block programs; 0 where it is empty."""
    wanted = sum(slots) * _TAIL
    below = 0
    for slot, count in enumerate(slots):
        if count and below + count >= wanted:
            start = slot_start_us(slot)
            return start + (slot_start_us(slot + 1) - start) * (wanted - below) / count
        below += count
    return 0.0
