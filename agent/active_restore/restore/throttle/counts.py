"""Requests of others on our disks where the block programs are not loaded: reads that disks count, less what we read.

An estimate: sysfs does not say whose a request is, and latencies are of all reads together. Writes are left out, as nobody
can tell which of those that a disk does now were made by us a while ago.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.linux.disks import counts
from active_restore.restore.throttle.requests import NOTHING, Served

if TYPE_CHECKING:
    from collections.abc import Sequence

    from active_restore.linux.disks import Disk
    from active_restore.linux.pressure import Use

# Our reads are long. Who reads in smaller pieces than this is somebody else.
_OWN_READ_BYTES = 64 << 10
# What is ours is not counted at the very same moments.
_TOLERANCE = 1.15
_SUSPICIOUS_PER_S = 30.0


class DiskCounts:
    """Differences between two looks. What we read is counted when it is asked for, and by the disk when it is done: it is
    credited until then.
    """

    def __init__(self, disks: Sequence[Disk]) -> None:
        self._disks = disks
        self._before = [counts(disk) for disk in disks]
        self._credit = [0] * len(disks)
        self.suspicious = False

    def look(self, own: Use, seconds: float) -> Served:
        """The disk with the most reads of others speaks for all: stacked ones count the same twice."""
        now = [counts(disk) for disk in self._disks]
        found = [NOTHING]
        self.suspicious = False
        for index, (old, new) in enumerate(zip(self._before, now, strict=True)):
            reads, read_bytes = new.reads - old.reads, new.read_bytes - old.read_bytes
            credit = self._credit[index] + own.read_bytes
            ours = min(credit, read_bytes)
            # Kept for one look: what came from the page cache of a lower disk is never read there.
            self._credit[index] = min(credit - ours, own.read_bytes)
            requests = int(reads * (1 - _TOLERANCE * ours / read_bytes)) if read_bytes else 0
            latency_us = (new.read_ms - old.read_ms) * 1000 / reads if reads else 0.0
            found.append(Served(max(requests, 0), latency_us, 0.0, new.in_flight))
            self.suspicious |= reads - ours / _OWN_READ_BYTES >= _SUSPICIOUS_PER_S * seconds
        self._before = now
        return max(found, key=lambda served: served.requests)
