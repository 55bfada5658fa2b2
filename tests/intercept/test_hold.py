"""Parking by ptrace, with threads that spin by themselves instead of in a hook: it needs no BPF."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from active_restore.intercept.hold import Holder
from active_restore.intercept.waits import Wait
from active_restore.model import Intent
from tests.vm.inside.territory import Child, state_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPIN = 'my $n = 0; $SIG{USR1} = sub { print "handled\\n"; exit 0 }; while (1) { open(my $f, "<", "/nonexistent") }'


class Bench:
    """A holder whose waits end when a test says so."""

    def __init__(self) -> None:
        self.lost: list[Wait] = []
        self.stopped: list[Wait] = []
        self.passed: set[int] = set()
        self._children: list[Child] = []
        self.lock = threading.Lock()
        self.holder = Holder(self.lock, self._passes, self.lost.append, self.lost.append, self.stopped.append)
        self.quiet: set[int] = set()
        self._looks = itertools.count(2)
        self.holder.start()

    def _passes(self, wait: Wait) -> int:
        """More with every look, but for those that do something else."""
        if wait.tid in self.passed:
            return 0
        return 1 if wait.tid in self.quiet else next(self._looks)

    def spin(self, *words: str) -> tuple[Child, Wait]:
        """A process that spins, and the wait that it stands for."""
        child = self.start(*words, "perl", "-e", _SPIN)
        if not words:
            until(lambda: _handles_usr1(child.pid), "perl's handler")
        wait = Wait(child.pid, child.pid, time.monotonic_ns(), 1, 1, Intent.READ, None, "perl", False)
        return child, wait

    def start(self, *words: str) -> Child:
        """A process that ends with the bench."""
        child = Child(*words)
        self._children.append(child)
        return child

    def end(self) -> None:
        """End the holder and all processes."""
        self.holder.end()
        for child in self._children:
            if state_of(child.pid):
                os.kill(child.pid, signal.SIGKILL)
            child.finish()


def _handles_usr1(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGUSR1 - 1) & 1)


def _traced_perl(strace: int) -> int:
    """The program that strace traces (it traces a child of its own before, to see what it can), 0 while there is none."""
    for pid in Path(f"/proc/{strace}/task/{strace}/children").read_text().split():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            if status.startswith("Name:\tperl\n") and "TracerPid:\t0\n" not in status:
                return int(pid)
    return 0


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A running holder."""
    made = Bench()
    yield made
    made.end()


def _runs(pid: int) -> bool:
    return state_of(pid) in ("R", "S", "D")


def _park(bench: Bench) -> tuple[Child, Wait]:
    child, wait = bench.spin()
    bench.holder.watch(wait)
    until(lambda: state_of(child.pid) == "t", "parking")
    return child, wait


def test_park_and_free(bench: Bench) -> None:
    child, wait = _park(bench)
    with bench.lock:
        bench.passed.add(child.pid)
    bench.holder.free(*wait.key)
    until(lambda: _runs(child.pid), "going on")
    assert bench.lost == []


def test_who_does_not_spin_is_left_alone(bench: Bench) -> None:
    """It handles a signal, or its entry was left over: parking it would hold it somewhere else."""
    child, wait = bench.spin()
    other, spinning = bench.spin()
    bench.quiet.add(child.pid)
    bench.holder.watch(wait)
    bench.holder.watch(spinning)
    until(lambda: state_of(other.pid) == "t", "parking of the other")
    assert _runs(child.pid)
    bench.quiet.clear()
    until(lambda: state_of(child.pid) == "t", "parking, once it spins")


def test_many_at_once(bench: Bench) -> None:
    """As many as docs/tasks.md promises, in many batches; a signal reaches another one all the same."""
    code = """
        import os, threading
        threading.stack_size(65536)
        for _ in range(5000): threading.Thread(target=os.read, args=(0, 1)).start()
    """
    child = bench.start(sys.executable, "-S", "-E", "-c", textwrap.dedent(code))
    tasks = Path(f"/proc/{child.pid}/task")
    until(lambda: len(list(tasks.iterdir())) == 5001, "all threads")
    tids = [int(task.name) for task in tasks.iterdir()]
    waits = [Wait(tid, child.pid, time.monotonic_ns(), 1, 1, Intent.READ, None, "python", False) for tid in tids]
    for wait in waits:
        bench.holder.watch(wait)
    until(lambda: all(state_of(child.pid, tid) == "t" for tid in tids), "parking of all")
    other, signalled = _park(bench)
    os.kill(other.pid, signal.SIGUSR1)
    assert other.finish() == "handled\n"
    assert bench.lost == [signalled]
    with bench.lock:
        bench.passed.update(tids)
    for wait in waits:
        bench.holder.free(*wait.key)
    until(lambda: all(state_of(child.pid, tid) in ("R", "S") for tid in tids), "going on of all")
    assert bench.lost == [signalled]


def test_who_may_pass_is_not_parked(bench: Bench) -> None:
    child, wait = bench.spin()
    bench.passed.add(child.pid)
    bench.holder.watch(wait)
    other, _ = _park(bench)
    assert state_of(other.pid) == "t"
    assert _runs(child.pid)


def test_unwatched_in_time(bench: Bench) -> None:
    child, wait = bench.spin()
    wait = wait._replace(since_ns=time.monotonic_ns() + 50_000_000)
    bench.holder.watch(wait)
    with bench.lock:
        bench.holder.unwatch(*wait.key)
    _park(bench)
    assert _runs(child.pid)


def test_signal_is_delivered(bench: Bench) -> None:
    child, wait = _park(bench)
    os.kill(child.pid, signal.SIGUSR1)
    assert child.finish() == "handled\n"
    assert bench.lost == [wait]


def test_kill_is_immediate_and_known(bench: Bench) -> None:
    child, wait = _park(bench)
    os.kill(child.pid, signal.SIGKILL)
    assert child.status() == -signal.SIGKILL
    until(lambda: bench.lost == [wait], "the end of the wait")


def test_killed_and_let_go_at_once(bench: Bench) -> None:
    """The kernel shows its parent nothing of its end before its tracer has taken note."""
    child, wait = _park(bench)
    # Not looked after again before it is let go.
    bench.holder._poll_at = time.monotonic() + 1
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: state_of(child.pid) == "Z", "its end")
    bench.holder.free(*wait.key)
    assert child.status() == -signal.SIGKILL


def test_killed_before_it_was_parked(bench: Bench) -> None:
    child, wait = bench.spin()
    os.kill(child.pid, signal.SIGKILL)
    assert child.status() == -signal.SIGKILL
    bench.holder.watch(wait)
    until(lambda: bench.lost == [wait], "the end of the wait")


def test_users_stop_and_continue(bench: Bench) -> None:
    child, wait = _park(bench)
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: state_of(child.pid) == "T", "the user's stop")
    assert bench.lost == [wait]
    os.kill(child.pid, signal.SIGCONT)
    until(lambda: _runs(child.pid), "going on")


def test_traced_by_somebody_else_is_ordered_to_stop(bench: Bench) -> None:
    strace, _ = bench.spin("strace", "-f", "-o", "/dev/null")
    until(lambda: _traced_perl(strace.pid), "tracing")
    traced = _traced_perl(strace.pid)
    wait = Wait(traced, traced, time.monotonic_ns(), 1, 1, Intent.READ, None, "perl", False)
    bench.holder.watch(wait)
    until(lambda: bench.stopped == [wait], "the order")
    os.kill(traced, signal.SIGKILL)


def test_stopped_process_is_resumed_and_then_forgotten(bench: Bench) -> None:
    child, wait = bench.spin()
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: state_of(child.pid) == "T", "the stop")
    bench.holder.resume(wait)
    until(lambda: bench.lost != [], "the confirmation")
    assert _runs(child.pid)


def test_stop_that_arrives_after_its_continuation(bench: Bench) -> None:
    child, wait = bench.spin()
    bench.holder.resume(wait)
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: _runs(child.pid) and bench.lost, "going on")


def test_end_lets_everybody_go() -> None:
    bench = Bench()
    child, _ = _park(bench)
    bench.holder.end()
    until(lambda: _runs(child.pid), "going on")
    bench.end()
