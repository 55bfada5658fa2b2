"""The BPF interceptor: LSM hooks make the kernel restart a task's system call until the content is there.

A waiting task holds no kernel lock and sits in no system call of ours. Programs and maps are pinned: with the agent dead,
tasks go on waiting. The map of waiters is the truth; events only make it fast.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.ebpf import abi, capability, program
from active_restore.ebpf.ring import Ring
from active_restore.errors import Busy, TargetError
from active_restore.intercept import bpf_load, orphans, pins
from active_restore.intercept.bpf_ranges import RangedInodes
from active_restore.intercept.gates import Gates, Rows, own_files
from active_restore.intercept.hold import Holder, rest_after
from active_restore.intercept.orphans import Orphans
from active_restore.intercept.policy import PolicyMaps, Treatment
from active_restore.intercept.stopped import resume_all
from active_restore.intercept.waits import Wait, Waiters, decode, row_of
from active_restore.linux.inode_numbers import InodeNumbers
from active_restore.linux.new_mount import PrivateMount
from active_restore.linux.process import hurry, is_alive, name_thread
from active_restore.model import Fault, Gate, Ranged, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from active_restore.config import Hold
    from active_restore.intercept.base import Beside, Territory

FIRST_TICKET = 1 << 62  # Tickets of the guard beside us are numbers of events and keepers.
_BEAT_SECONDS = 0.5
_BUSY_SECONDS = 0.005
_LONGEST_WITHOUT_SWEEP = 5.0
_POLL_MS = 100
_RING_PAGES = 64


class BpfInterceptor:
    """See ``intercept.base.Interceptor`` for what each method promises.

    Tasks that cannot be restarted are left to the guard ``beside``, once there is one. ``hold``: whether a waiting thread
    spins and is then parked by ptrace, or its whole process is stopped at once, as it is while no agent lives. ``by_range``:
    whether files may be held by range; who opens these is left to the guard, which must know of them, too.
    """

    name = "bpf"
    reason = ""
    serve_threads = 4
    needs_inode_numbers = True

    def __init__(
        self,
        ring_pages: int = _RING_PAGES,
        hold: Hold = "ptrace",
        beside: Callable[[], Beside] | None = None,
        *,
        by_range: bool = False,
    ) -> None:
        self.by_range = by_range
        self._ranged = RangedInodes(None)
        self.windows = self.unmoved = False
        self._ring_pages = ring_pages
        self._hold = hold
        self._beside = beside
        self._mount: PrivateMount | None = None
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._ending = threading.Event()
        self._known: dict[tuple[int, int], Wait] = {}
        self._arrived: deque[Wait] = deque()
        self._tickets = itertools.count(FIRST_TICKET)

    def arm(self, territory: Territory) -> None:
        """Load the programs with no inode guarded."""
        capability.require()
        with contextlib.ExitStack() as undo:
            claim = pins.Lock(territory)
            undo.callback(claim.release)
            self._find_numbers(territory)
            undo.callback(self._numbers.close)
            path = pins.directory(territory.restore_id)
            if path.is_dir():
                raise Busy(f"A dead agent's guard is still there for {territory.root}.", "Use: active-restore resume")
            undo.callback(program.unpin, path)  # Nobody would find what nobody serves.
            bpf_load.load(territory, path, self._ring_pages, by_range=self.by_range)
            self._open(territory, claim, path, is_new=True)
            self._rows.clear()
            undo.pop_all()
        self._begin()

    def adopt(self, territory: Territory) -> bool:
        """Open the pins; everybody in the map of waiters is reported again."""
        with contextlib.ExitStack() as undo:
            claim = pins.Lock(territory)
            undo.callback(claim.release)
            path = pins.left(territory)
            if path is None:
                return False
            self._find_numbers(territory)
            undo.callback(self._numbers.close)
            self._open(territory, claim, path)
            undo.pop_all()
        self._pins.set_state("STATE_ABANDON", 0)
        self.laid()
        self._begin()
        return True

    def _find_numbers(self, territory: Territory) -> None:
        try:
            self._numbers = InodeNumbers(territory.root)
        except LookupError as error:
            raise TargetError(
                f"The inodes of {territory.root} cannot be found by number ({error}).", "Use --interceptor fanotify."
            ) from error

    def _open(self, territory: Territory, claim: pins.Lock, path: Path, *, is_new: bool = False) -> None:
        self._territory, self._claim, self._pins = territory, claim, pins.Pins(path)
        self._orphans = Orphans(territory, self._numbers)
        self._gates = Gates(self._pins.maps["gate"], abi.load().structs["gate_word"], empty=is_new)
        self._rows = Rows(str(Path(territory.run_dir) / "bpf.rows"))
        self._ranged = RangedInodes.pinned(path, empty=is_new)
        self.windows = bool(self._pins.state("STATE_WINDOWS"))
        self._waiters = Waiters(self._pins.maps["waiters"], self._pins.maps["orders"])
        self._ring = Ring(self._pins.maps["events"])
        self._holder = Holder(self._lock, self._passes, self._lost, self._forget, self._waiters.order_stop)

    def _begin(self) -> None:
        self._pins.serve(os.getpid(), self.passage())
        self._pins.set_state("STATE_HOLD", abi.load().constants["HOLD_STOP" if self._hold == "sigstop" else "HOLD_SPIN"])
        self._pins.beat()
        self._trust_guard()
        self._policy = PolicyMaps(self._territory.policy, self._pins.maps["commands"], self._pins.maps["cgroups"])
        self._holder.start()
        self._sweep()
        self._heart = threading.Thread(target=self._live, name="heartbeat", daemon=True)
        self._heart.start()

    def add(self, inodes: Iterable[tuple[int, int]], handle_of: Callable[[int], bytes] | None = None) -> None:
        """Remember the rows, then close the gates, then forget the pages that are there (after ``adopt``)."""
        with orphans.closing():
            closed = self._gates.close_all(self._rows.add(inodes))
        self._ranged.forget(closed)
        self._orphans.let_go(closed, self._rows, handle_of)

    def laid(self) -> None:
        """The agent's own files may have numbers of placeholders that were deleted, and nobody would tell it so but itself."""
        for inode in own_files(self._territory):
            self._gates.open(inode, Gate.ALL)

    def _live(self) -> None:
        """Beat; and while everybody who serves is busy, take in who comes, so that these are parked and do not spin."""
        name_thread("heartbeat")
        with contextlib.suppress(OSError):
            # An old heartbeat stops whole processes: those who spin must not keep it from the processor.
            hurry()
        beaten, sweep_at = time.monotonic(), 0.0
        while not self._ending.wait(_BUSY_SECONDS):
            if self._turn.acquire(timeout=_BEAT_SECONDS):
                try:
                    self._take_in(0)
                finally:
                    self._turn.release()
            if time.monotonic() - beaten >= _BEAT_SECONDS:
                beaten = time.monotonic()
                self._pins.beat()
                self._trust_guard()
                self._policy.refresh()
                if beaten >= sweep_at:
                    self._sweep()
                    sweep_at = rest_after(beaten, _LONGEST_WITHOUT_SWEEP)

    def _trust_guard(self) -> None:
        """The kernel side takes the trust back when that process ends; if it has ended before, nobody would."""
        pid = self._beside().pid if self._beside else 0
        self._pins.set_state("STATE_GUARD", pid)
        if pid and not is_alive(pid):
            self._pins.set_state("STATE_GUARD", 0)

    def _sweep(self) -> None:
        """Find the waits whose event was lost, those that spin again after a stop, and those that have ended."""
        waiting = {wait.key: wait for wait in self._waiters.all()}
        for key in self._known.keys() - waiting.keys():
            self._known.pop(key, None)
        for wait in waiting.values():
            if wait.key in self._known:
                self._holder.watch(wait)
            else:
                self._register(wait)
        self._waiters.drop_old_orders()

    def _take_in(self, timeout_ms: int) -> None:
        for event in self._ring.read(timeout_ms):
            self._register(decode(event))

    def _register(self, wait: Wait) -> None:
        with self._lock:
            if wait.key in self._known:
                return
            self._known[wait.key] = wait
        self._holder.watch(wait)
        self._arrived.append(wait)

    @property
    def ranges(self) -> str:
        """The programs on read, write and mmap, where they were loaded with these."""
        return "BPF programs" if self._ranged else ""

    def hold_ranges(self, files: Sequence[Ranged]) -> list[tuple[memoryview, bool]]:
        """An array of the kernel for each; from the moment in which its bit changes opens pass and accesses wait."""
        held: list[tuple[memoryview, bool]] = []
        for file in files:
            inode = self._rows.inode(file.row)
            if inode is None or (memory := self._ranged.hold(inode, file.size)) is None:
                break
            with self._lock:
                self._gates.by_range(inode)
            held.append(memory)
        return held

    def serve(self, on_fault: Callable[[Fault], None]) -> None:
        """Whoever reads an event serves it; the next thread reads meanwhile."""
        while not self._ending.is_set():
            wait = self._next()
            if wait is not None:
                self._deliver(wait, on_fault)

    def _next(self) -> Wait | None:
        with self._turn:
            if not self._arrived and not self._ending.is_set():
                self._take_in(_POLL_MS)
            return self._arrived.popleft() if self._arrived else None

    def _deliver(self, wait: Wait, on_fault: Callable[[Fault], None]) -> None:
        handle = self._numbers.handle(wait.inode, wait.generation)
        try:
            row = row_of(self._numbers, handle, self._territory.marker_prefix)
        except (OSError, ValueError):
            # The disk fails or the marker is broken: refuse, never guess.
            self._refuse(wait.tid, wait.since_ns, errno.EIO)
            return
        if row is None or self._rows.inode(row) != wait.inode:
            # No placeholder, or a copy that somebody made together with the marker.
            self._dismiss(wait)
            return
        treatment = self._policy.of(wait.tid)
        if treatment is Treatment.REFUSE:
            self._refuse(wait.tid, wait.since_ns, errno.EAGAIN)
            return
        task, patient = Task(wait.tid, wait.tgid, wait.comm), wait.patient or treatment is Treatment.BACKGROUND
        on_fault(Fault(next(self._tickets), row, handle, wait.intent, task, wait.since_ns, wait.range, patient))

    def _dismiss(self, wait: Wait) -> None:
        with self._lock:
            self._gates.open(wait.inode, Gate.ALL)
            self._known.pop(wait.key, None)
        self._let_go(wait.tid, wait.since_ns)

    def release(self, row: int, gate: Gate, faults: Sequence[Fault]) -> None:
        """Open the gate first: whoever is let go before would come back."""
        inode = self._rows.inode(row)
        with self._lock:
            for fault in faults:
                self._holder.unwatch(fault.task.tid, fault.since_ns)
            if inode is not None and gate is not Gate.NONE:
                self._gates.open(inode, gate)
                if gate is Gate.ALL:
                    self._ranged.drop([inode])
        for fault in faults:
            self._let_go(fault.task.tid, fault.since_ns)

    def filled(self, inode: int) -> None:
        """Nothing to do: the gate of readers is a bit; truncate(2) is held as long as that of writers is closed."""

    unfilled = filled

    def completed(self, rows: Sequence[int]) -> Sequence[int]:
        """None: writers and truncate(2) are held until a file is settled, so it may be filled again."""
        return ()

    def settled(self, rows: Sequence[int]) -> None:
        """Open their gates. Who waits at one of them is served like all others, and found to wait for nothing."""
        inodes = self._rows.inodes(rows)
        with self._lock:
            self._gates.open_all(inodes)
            self._ranged.drop(inodes.tolist())

    def _let_go(self, tid: int, since_ns: int) -> None:
        wait = self._waiters.peek(tid)
        if wait is None or wait.since_ns != since_ns or not wait.stopped:
            wait = self._waiters.forget(tid, since_ns)
            self._known.pop((tid, since_ns), None)
            self._holder.free(tid, since_ns)
        if wait is not None and wait.since_ns == since_ns and wait.stopped:
            self._holder.resume(wait)

    def refuse(self, row: int, errno: int, faults: Sequence[Fault]) -> None:
        """The order is carried out when the call is restarted."""
        for fault in faults:
            self._refuse(fault.task.tid, fault.since_ns, errno)

    def _refuse(self, tid: int, since_ns: int, errno: int) -> None:
        with self._lock:
            self._holder.unwatch(tid, since_ns)
            self._waiters.order_refusal(tid, since_ns, errno)
        wait = self._waiters.peek(tid)
        self._holder.free(tid, since_ns)
        if wait is not None and wait.since_ns == since_ns and wait.stopped:
            self._holder.resume(wait)

    def _passes(self, wait: Wait) -> int:
        """How often it has come by so far; 0 unless it waits, is not stopped, and its gate is closed."""
        there = self._waiters.peek(wait.tid)
        if there is None or there.since_ns != wait.since_ns or there.stopped:
            return 0
        return there.passes if self._gates.is_closed(wait.inode, wait.intent) else 0

    def _lost(self, wait: Wait) -> None:
        """The thread ended, or goes on to handle a signal and will report a new wait; one that we stopped waits on."""
        there = self._waiters.peek(wait.tid)
        if there is None or there.since_ns != wait.since_ns or not there.stopped:
            self._forget(wait)

    def _forget(self, wait: Wait) -> None:
        self._waiters.forget(wait.tid, wait.since_ns)
        self._known.pop(wait.key, None)

    def passage(self) -> int:
        """The guard's, or a mount of our own."""
        if self._beside is not None:
            return self._beside().passage
        if self._mount is None:
            self._mount = PrivateMount(self._territory.root)
        return self._mount.root

    def describe(self, fault: Fault) -> Task:
        """The programs have told."""
        return fault.task

    def leave(self, doubted: Sequence[int] = ()) -> None:
        """Parked threads are let go and stopped by the hooks, because nobody is there to spin for.

        Whole files that are doubted are held from writers still, and may be filled again.
        """
        self._quiet()
        self._ranged.doubt(self._rows.inodes(doubted).tolist())
        self._pins.set_state("STATE_HEARTBEAT", 0)
        self._holder.end()
        self._close()

    def abandon(self, errno: int) -> None:
        """Every waiting thread is sent back to its hook, which refuses."""
        self._quiet()
        self._pins.set_state("STATE_ABANDON", errno)
        self._let_all_go()
        self._close()

    def disarm(self) -> None:
        """The hooks end before anybody is let go, so nobody comes back."""
        self._quiet()
        self._pins.end_hooks()
        self._let_all_go()
        self._pins.remove()
        self._claim.remove()
        self._close()
        self._rows.remove()

    def _quiet(self) -> None:
        """End the threads that serve."""
        self._ending.set()
        self._heart.join()

    def _let_all_go(self) -> None:
        stopped = {wait.tgid for wait in self._waiters.all() if wait.stopped}
        self._holder.end()
        resume_all(stopped)

    def _close(self) -> None:
        with self._turn:
            self._ring.close()
        self._rows.close()
        self._ranged.close()
        self._pins.close()
        self._numbers.close()
        if self._mount is not None:
            self._mount.close()
        self._claim.release()
