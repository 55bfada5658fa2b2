"""BPF for every task whose call can be restarted, and a fanotify guard beside it for those whose cannot.

The guard's hook lies behind ours in the same open: it sees only what BPF lets pass. That are files which are no
placeholders (each once), and the odd contexts of design section 9: io_uring, kernel threads, usermode helpers, PID 1, tasks
traced by others, tasks with a handler for SIGCONT. Without a living guard these get EAGAIN.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from active_restore.intercept.bpf_lsm import FIRST_TICKET, BpfInterceptor
from active_restore.intercept.fanotify import FanotifyInterceptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from active_restore.intercept.base import Interceptor, Territory
    from active_restore.model import Fault, Gate, Task


class GuardedBpfInterceptor:
    """See ``intercept.base.Interceptor`` for what each method promises."""

    name = "bpf"
    needs_inode_numbers = True

    def __init__(self) -> None:
        self._guard = FanotifyInterceptor()
        self._bpf = BpfInterceptor(guard_pid=lambda: self._guard.keeper_pid)
        self.serve_threads = self._bpf.serve_threads + self._guard.serve_threads
        self._served = itertools.count()

    def _both(self) -> tuple[Interceptor, Interceptor]:
        return self._bpf, self._guard

    def arm(self, territory: Territory) -> None:
        """The guard first: the programs trust it from their first moment."""
        self._guard.arm(territory)
        try:
            self._bpf.arm(territory)
        except BaseException:
            self._guard.disarm()
            raise

    def add(self, inodes: Iterable[tuple[int, int]]) -> None:
        """The guard goes by markers and needs no telling."""
        self._bpf.add(inodes)

    def laid(self) -> None:
        """Both."""
        for each in self._both():
            each.laid()

    def adopt(self, territory: Territory) -> bool:
        """Both were left, or neither is taken: where one is missing, it is put back before the other one serves."""
        if not self._guard.adopt(territory):
            self._guard.arm(territory)
            self._guard.laid()
        if self._bpf.adopt(territory):
            return True
        self._guard.disarm()
        self._guard = FanotifyInterceptor()
        return False

    def serve(self, on_fault: Callable[[Fault], None]) -> None:
        """The first threads serve BPF, the later ones the guard."""
        serving = self._bpf if next(self._served) < self._bpf.serve_threads else self._guard
        serving.serve(on_fault)

    def release(self, row: int, gate: Gate, faults: Sequence[Fault]) -> None:
        """Each opens its gate and answers its own."""
        ours, theirs = _split(faults)
        self._guard.release(row, gate, theirs)
        self._bpf.release(row, gate, ours)

    def refuse(self, row: int, errno: int, faults: Sequence[Fault]) -> None:
        """Each answers its own."""
        ours, theirs = _split(faults)
        self._bpf.refuse(row, errno, ours)
        self._guard.refuse(row, errno, theirs)

    def passage(self) -> int:
        """The guard goes by mounts, BPF by threads."""
        return self._guard.passage()

    def describe(self, fault: Fault) -> Task:
        """Each knows its own."""
        return (self._bpf if fault.ticket >= FIRST_TICKET else self._guard).describe(fault)

    def exempt(self, tid: int) -> None:
        """Both."""
        for each in self._both():
            each.exempt(tid)

    def unexempt(self, tid: int) -> None:
        """Both."""
        for each in self._both():
            each.unexempt(tid)

    def leave(self) -> None:
        """The keepers go on guarding."""
        for each in self._both():
            each.leave()

    def abandon(self, errno: int) -> None:
        """Both refuse from now on."""
        for each in self._both():
            each.abandon(errno)

    def disarm(self) -> None:
        """BPF first: while its hooks are there, they may lean on the guard."""
        for each in self._both():
            each.disarm()


def _split(faults: Sequence[Fault]) -> tuple[list[Fault], list[Fault]]:
    """(faults of BPF, faults of the guard)."""
    ours = [fault for fault in faults if fault.ticket >= FIRST_TICKET]
    return ours, [fault for fault in faults if fault.ticket < FIRST_TICKET]
