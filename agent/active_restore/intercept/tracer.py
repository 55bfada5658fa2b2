"""Stopped threads that nobody's SIGCONT lets go on, because we trace them. One thread of ours does it all.

Where that thread ends, however it does, the kernel ends the traces, and they stop again: their process is stopped still, or a
SIGSTOP that was kept pending stops it once more.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
from typing import TYPE_CHECKING

from active_restore.linux import pressure, ptrace, tasks
from active_restore.linux.process import is_alive

if TYPE_CHECKING:
    from active_restore.ebpf.growth import Grown

LOOK_MS = 20
"""How often ``look`` is wanted while anybody is traced."""
_SIGSTOP_BIT = 1 << (signal.SIGSTOP - 1)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_AT_REST = (b"T", b"t", b"Z", b"X")


class Tracer:
    """Who is traced, by thread id: its process, and whether it has left the kernel's call behind."""

    def __init__(self) -> None:
        self._groups: dict[int, int] = {}
        self._resting: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._groups)

    def take(self, tid: int, tgid: int) -> bool:
        """Trace this one; ``False`` where it is gone, or traced by others."""
        try:
            ptrace.seize(tid)
        except OSError:
            return False
        self._groups[tid] = tgid
        with contextlib.suppress(OSError):
            ptrace.interrupt(tid)
        return True

    def rests(self, tid: int) -> bool:
        """Whether it is traced and stands still."""
        return tid in self._resting

    def look(self) -> list[int]:
        """Those that have ended; who stands still gets a SIGSTOP that waits for it, again where somebody took it away."""
        ended: list[int] = []
        while (change := ptrace.next_change()) is not None:
            tid, status = change
            if os.WIFSTOPPED(status):
                self._resting.add(tid)
            elif self._groups.pop(tid, None) is not None:
                self._resting.discard(tid)
                ended.append(tid)
        for tid in self._resting:
            if not _is_stop_pending(tid):
                tasks.send(self._groups[tid], tid, signal.SIGSTOP)
        return ended

    def let_go(self, tid: int) -> None:
        """Its process was continued: it goes on, too."""
        self._groups.pop(tid, None)
        self._resting.discard(tid)
        with contextlib.suppress(ProcessLookupError):
            ptrace.detach(tid, 0)

    def leave(self) -> None:
        """All stop by themselves from now on."""
        self.look()
        for tid in list(self._groups):
            self.let_go(tid)


class Bell:
    """The ring of the programs. It only wakes us up: what it says lies in the map."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._consumer = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")
        self._producer = memoryview(mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)).cast("Q")

    def empty(self) -> None:
        """Wait for the next from now on."""
        self._consumer[0] = self._producer[0]


def is_same(grown: Grown) -> bool:
    """Whether it lives still, and is not another thread to which its number was given."""
    with contextlib.suppress(OSError):
        return pressure.start_ticks(grown.tid) == grown.began_ns // (1_000_000_000 // _TICKS_PER_S)
    return False


def is_quiet(tgid: int, calls: frozenset[int]) -> bool:
    """Whether no thread of this process is inside one of these calls, or may be: a stop could be on its way to it.

    A SIGCONT that is sent meanwhile would take that stop away.
    """
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{tgid}/task")]
    except OSError:
        return True
    return not any(_may_be_inside(tid, calls) for tid in threads)


def _may_be_inside(tid: int, calls: frozenset[int]) -> bool:
    try:
        with open(f"/proc/{tid}/stat", "rb") as stat:
            if stat.read().rpartition(b")")[2].split()[0] in _AT_REST:
                return False
        words = tasks.read_proc(f"/proc/{tid}/syscall").split()
    except OSError:
        return is_alive(tid)
    return words[0] == b"running" or int(words[0]) in calls


def _is_stop_pending(tid: int) -> bool:
    try:
        status = tasks.read_proc(f"/proc/{tid}/status")
    except OSError:
        return True
    pending = next(line for line in status.splitlines() if line.startswith(b"SigPnd:"))
    return bool(int(pending.split()[1], 16) & _SIGSTOP_BIT)
