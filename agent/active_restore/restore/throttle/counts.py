"""Requests of others on our disks where the block programs are not loaded: what disks count, less what we used.

An estimate: sysfs does not say whose a request is, and latencies are of all reads together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.linux.disks import Counts, counts
from active_restore.restore.throttle.requests import Served

if TYPE_CHECKING:
    from collections.abc import Sequence

    from active_restore.linux.disks import Disk
    from active_restore.linux.pressure import Use

# Our reads are long. Who reads in smaller pieces than this is somebody else.
_OWN_READ_BYTES = 64 << 10
# What the file system makes of what we write, with journal, inodes and directories; rather too much than to meet ourselves.
_ADDED = 3.0
_WRITE_BYTES = 16 << 10
_SUSPICIOUS_PER_S = 30.0


class DiskCounts:
    """Differences between two looks. Our writes reach the disk later: they are credited when made, and used up as it writes."""

    def __init__(self, disks: Sequence[Disk]) -> None:
        self._disks = disks
        self._before = [counts(disk) for disk in disks]
        self._credit = [0.0] * len(disks)
        self.suspicious = False

    def look(self, own: Use, seconds: float) -> Served:
        """The disk with the most requests of others speaks for all: stacked ones count the same twice."""
        now = [counts(disk) for disk in self._disks]
        found = [Served(0, 0.0, 0.0, 0)]
        self.suspicious = False
        for index, (old, new) in enumerate(zip(self._before, now, strict=True)):
            reads, read_bytes = new.reads - old.reads, new.read_bytes - old.read_bytes
            share = max(1 - own.read_bytes / read_bytes, 0.0) if read_bytes else 0.0
            requests = int(reads * share) + self._foreign_writes(index, old, new, own)
            latency_us = (new.read_ms - old.read_ms) * 1000 / reads if reads else 0.0
            found.append(Served(requests, latency_us, 0.0, new.in_flight))
            self.suspicious |= reads - own.read_bytes / _OWN_READ_BYTES >= _SUSPICIOUS_PER_S * seconds
            self.suspicious |= requests >= _SUSPICIOUS_PER_S * seconds
        self._before = now
        return max(found, key=lambda served: served.requests)

    def _foreign_writes(self, index: int, old: Counts, new: Counts, own: Use) -> int:
        """Writes beyond what we made."""
        credit = self._credit[index] + own.write_bytes * _ADDED
        written = new.write_bytes - old.write_bytes
        self._credit[index] = max(credit - written, 0.0)
        return int(max(written - credit, 0.0)) // _WRITE_BYTES
