"""Hold threads without a trace: one thread of ours that parks, by ptrace, whoever has been spinning for too long.

Only the thread itself is held; its siblings, its parent and its shell notice nothing. A parked thread does not see its
signals, so they are looked for; where one waits, the thread goes on, handles it and faults again.

Not guaranteed: parking. Where somebody else traces the thread, or we may not, its process is stopped instead.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from active_restore.intercept import stopped
from active_restore.linux import ptrace
from active_restore.linux.process import exists, hurry, is_alive, name_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from active_restore.intercept.waits import Wait

_log = logging.getLogger(__name__)
# A fault that is served from a local source takes a fraction of this; a thread spins meanwhile.
_PARK_AFTER_NS = 1_000_000
_TICK_SECONDS = 0.001
_LONGEST_TICK_SECONDS = 0.1
_POLL_SECONDS = 0.01
# Looking after thousands takes a part of the time only, however slow the machine is; but a machine that stood still for
# a minute must not make it rest for ten.
_REST = 10
_LONGEST_REST_SECONDS = 1.0
# Looking for signals costs about 30 us a thread: others are to be parked meanwhile.
_LOOKS_AT_ONCE = 128
_STOP_SECONDS = 0.05
_LOOK_SECONDS = 0.00005
# Thousands of spinning threads get a processor seldom: many are asked to stop before the first is waited for.
_AT_ONCE = 128
# Those who take them in and serve them need the interpreter, too.
_PARKED_IN_A_TURN = 4 * _AT_ONCE
_SIGCONT_BIT = 1 << (signal.SIGCONT - 1)


def rest_after(began: float, longest: float = _LONGEST_REST_SECONDS) -> float:
    """When work that began then and ends now may be done again (``time.monotonic``)."""
    now = time.monotonic()
    return now + min(_REST * (now - began), longest)


class Holder:
    """``lock`` is also taken around the opening of gates: whoever is about to be parked cannot pass meanwhile.

    ``passes`` says how often a thread has come by, 0 where it waits no longer or is stopped; ``lost`` is told of waits that
    ended by themselves (the thread died, or went on to handle a signal), ``resumed`` of stopped ones that run again; ``stop``
    orders a thread that cannot be parked to be stopped.
    """

    def __init__(
        self,
        lock: threading.Lock,
        passes: Callable[[Wait], int],
        lost: Callable[[Wait], None],
        resumed: Callable[[Wait], None],
        stop: Callable[[Wait], None],
    ) -> None:
        self._lock = lock
        self._passes, self._lost, self._resumed, self._stop = passes, lost, resumed, stop
        self._watched: dict[tuple[int, int], Wait] = {}
        self._parked: dict[int, Wait] = {}
        self._late: set[int] = set()
        self._freed: list[tuple[int, int]] = []
        self._continued: list[tuple[float, Wait]] = []
        self._wake = threading.Event()
        self._ending = False
        self._poll_at = 0.0
        self._round: Iterator[Wait] = iter(())
        self._park_at = 0.0
        self._thread = threading.Thread(target=self._run, name="hold", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Let every parked thread go and end."""
        self._ending = True
        self._wake.set()
        self._thread.join()

    def watch(self, wait: Wait) -> None:
        """Park this thread if it still waits a millisecond after its beginning."""
        if wait.stopped or wait.tid in self._parked:
            return
        with self._lock:
            idle = not self._watched
            self._watched[wait.key] = wait
        if idle:
            self._wake.set()

    def unwatch(self, tid: int, since_ns: int) -> None:
        """Do not park it any more. Called with ``lock`` held."""
        self._watched.pop((tid, since_ns), None)

    def free(self, tid: int, since_ns: int) -> None:
        """Let a thread go on if it was parked; the others go on by themselves. Called after its gate was opened."""
        if tid in self._parked:
            self._freed.append((tid, since_ns))
            self._wake.set()

    def resume(self, wait: Wait) -> None:
        """Continue a process that was stopped, also if its stop arrives a little later than this; then the wait is ``resumed``.

        It stays in the kernel's map until then: an agent that dies meanwhile leaves it to the next one.
        """
        stopped.proceed(wait.tgid)
        now = time.monotonic()
        self._continued += [(now + delay, wait) for delay in stopped.CONFIRM_SECONDS]
        self._wake.set()

    def _run(self) -> None:
        name_thread("hold")
        with contextlib.suppress(OSError):
            # Those who spin must not keep it from the processor.
            hurry()
        while not self._ending:
            self._wake.wait(self._pause())
            self._wake.clear()
            try:
                self._take_turn()
            except OSError:
                # Whatever it was: parked threads wait for this one.
                _log.exception("a thread could not be parked or let go")
        for wait in list(self._parked.values()):
            self._detach(wait.tid, 0)
        # Who has not stopped yet is let go by the kernel when this thread ends.

    def _take_turn(self) -> None:
        self._detach_freed()
        if (began := time.monotonic()) >= self._park_at:
            due = self._due()
            for first in range(0, len(due), _AT_ONCE):
                self._park(due[first : first + _AT_ONCE])
            now = time.monotonic()
            # Half of the time at most: who does not spin yet is tried again and again.
            self._park_at = now + min(max(now - began, _TICK_SECONDS), _LONGEST_TICK_SECONDS)
        if (began := time.monotonic()) >= self._poll_at:
            self._collect_changes()
            self._look_for_signals()
            self._confirm()
            self._poll_at = max(began + _POLL_SECONDS, rest_after(began))

    def _pause(self) -> float | None:
        if self._watched:
            return max(self._park_at - time.monotonic(), 0.0)
        if self._parked or self._continued or self._late:
            return max(self._poll_at - time.monotonic(), 0.0)
        return None

    def _due(self) -> list[Wait]:
        """Who has waited long enough; of very many the first, and who was tried in vain comes behind the others."""
        before = time.monotonic_ns() - _PARK_AFTER_NS
        with self._lock:
            waits = (wait for wait in self._watched.values() if wait.since_ns < before)
            return list(itertools.islice(waits, _PARKED_IN_A_TURN))

    def _park(self, waits: list[Wait]) -> None:
        """With the lock held, so that the gates stay closed and the threads can only be spinning."""
        with self._lock:
            seized = {wait.tid: wait for wait in waits if self._seize(wait)}
            statuses = _stops(set(seized))
            self._parked |= seized
            # It may have been refused at the last moment, and is on its way.
            leaving = [wait for wait in seized.values() if not self._passes(wait)]
        for tid, status in statuses.items():
            self._take_change(tid, status)
        for wait in leaving:
            if self._parked.get(wait.tid) is wait:
                self._detach(wait.tid, 0)

    def _seize(self, wait: Wait) -> bool:
        """Whether this thread is ours and is about to stop."""
        if self._watched.pop(wait.key, None) is None or not (passes := self._passes(wait)):
            return False
        if passes == wait.passes:
            # Not spinning now: it has no processor, or handles a signal, or went on in the moment in which it was let go.
            self._watched[wait.key] = wait
            return False
        try:
            ptrace.seize(wait.tid)
        except OSError as error:
            if not is_alive(wait.tid):
                self._lost(wait)
            elif error.errno == errno.EPERM:
                self._stop(wait)
            return False
        with contextlib.suppress(OSError):
            ptrace.interrupt(wait.tid)
        return True

    def _take_change(self, tid: int, status: int) -> None:
        """A thread that we trace has stopped or ended."""
        wait = self._parked.get(tid)
        if not os.WIFSTOPPED(status):
            self._late.discard(tid)
            self._parked.pop(tid, None)
            if wait is not None:
                self._lost(wait)
        elif wait is None:
            self._late.discard(tid)
            self._detach(tid, _deliver(status))
        elif ptrace.is_group_stop(status) or _deliver(status):
            # The user's stop, or a signal that it already has in its hands.
            self._let_handle(wait, _deliver(status))

    def _let_handle(self, wait: Wait, received: int) -> None:
        """Forgotten first: the pass after the signal reports a new wait."""
        self._lost(wait)
        self._detach(wait.tid, received)

    def _detach(self, tid: int, received: int) -> None:
        self._parked.pop(tid, None)
        try:
            ptrace.detach(tid, received)
        except ProcessLookupError:
            # It has not stopped yet, and goes on as soon as it has. Or it was killed, and its parent waits for it in vain
            # until we have taken note.
            self._late.add(tid)

    def _detach_freed(self) -> None:
        while self._freed:
            tid, since_ns = self._freed.pop()
            wait = self._parked.get(tid)
            if wait is not None and wait.since_ns == since_ns:
                self._detach(tid, 0)

    def _collect_changes(self) -> None:
        while (change := ptrace.next_change()) is not None:
            self._take_change(*change)
        self._late = {tid for tid in self._late if exists(tid)}

    def _look_for_signals(self) -> None:
        looked_at = list(itertools.islice(self._round, _LOOKS_AT_ONCE))
        if len(looked_at) < _LOOKS_AT_ONCE:
            self._round = iter(list(self._parked.values()))
        for wait in looked_at:
            if self._parked.get(wait.tid) is wait and _has_signal(wait):
                self._let_handle(wait, 0)

    def _confirm(self) -> None:
        now = time.monotonic()
        due = [wait for when, wait in self._continued if when <= now]
        self._continued = [entry for entry in self._continued if entry[0] > now]
        for wait in due:
            if stopped.is_stopped(wait.tgid):
                stopped.proceed(wait.tgid)
            else:
                self._resumed(wait)


def _stops(tids: set[int]) -> dict[int, int]:
    """The statuses with which seized threads stop or end: it takes microseconds, but for those that get no processor."""
    found: dict[int, int] = {}
    end = time.monotonic() + _STOP_SECONDS
    while tids and time.monotonic() < end:
        for tid in tids:
            with contextlib.suppress(OSError):
                status = ptrace.change(tid)
                if status is not None:
                    found[tid] = status
        tids = tids - found.keys()
        # We go before all others: they need the processor to stop.
        time.sleep(_LOOK_SECONDS)
    return found


def _deliver(status: int) -> int:
    """The signal that a stopped thread has in its hands, 0 for none; SIGCONT is ours, from the time when it was spinning."""
    received = os.WSTOPSIG(status)
    is_event = ptrace.is_trap(status) or ptrace.is_group_stop(status)
    return 0 if is_event or received == signal.SIGCONT else received


def _has_signal(wait: Wait) -> bool:
    """Whether a signal waits that the thread would notice. SIGCONT is ours, from the time when the thread was spinning."""
    try:
        with open(f"/proc/{wait.tgid}/task/{wait.tid}/status", "rb") as status:
            fields = dict(line.split(b":\t", 1) for line in status.read().splitlines() if line.startswith((b"Sig", b"Shd")))
    except OSError:
        return False
    pending, shared, blocked, ignored = (int(fields[name], 16) for name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn"))
    return bool((pending | shared) & ~blocked & ~ignored & ~_SIGCONT_BIT)
