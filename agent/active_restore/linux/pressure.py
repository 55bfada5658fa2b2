"""What the kernel counts about the whole machine: pressure stall information, processor time, free memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_TICKS_PER_S = 100  # USER_HZ


class Stalls(NamedTuple):
    """Seconds in which at least one task waited for the resource (``some``). Source: accounting/psi.rst."""

    io_s: float
    cpu_s: float
    memory_s: float

    def since(self, before: Stalls) -> Stalls:
        """The difference."""
        return Stalls(self.io_s - before.io_s, self.cpu_s - before.cpu_s, self.memory_s - before.memory_s)


class Use(NamedTuple):
    """What tasks used so far: seconds of processor time in user mode, bytes really read from disks."""

    user_s: float
    read_bytes: int


def stalls() -> Stalls:
    """Since boot; zeros where the kernel does not count (psi=0 or CONFIG_PSI=n)."""
    return Stalls(*(_some(name) for name in ("io", "cpu", "memory")))


def _some(name: str) -> float:
    try:
        words = Path(f"/proc/pressure/{name}").read_bytes().split(maxsplit=5)
        return int(words[4].removeprefix(b"total=")) / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0


def user_seconds() -> float:
    """Processor time that all tasks spent in user mode, nice ones included."""
    with open("/proc/stat", "rb") as file:
        words = file.readline().split()
    return (int(words[1]) + int(words[2])) / _TICKS_PER_S


def free_share() -> float:
    """The share of memory that holds nothing at all."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines()[:3])
    return int(fields["MemFree"].split()[0]) / int(fields["MemTotal"].split()[0])


def use_of(pid: int) -> Use:
    """Of one process since it began; zeros where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        counts = dict(line.split(b": ") for line in Path(f"/proc/{pid}/io").read_bytes().splitlines())
    except (OSError, ValueError):
        return Use(0.0, 0)
    utime = stat[stat.rindex(b")") + 2 :].split(maxsplit=12)[11]
    return Use(int(utime) / _TICKS_PER_S, int(counts[b"read_bytes"]))


def start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since boot; raises ``OSError`` where it has ended."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat[stat.rindex(b")") + 2 :].split()[19])
