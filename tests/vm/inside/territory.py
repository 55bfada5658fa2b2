"""A directory under guard and a small engine that fills placeholders when a test says so."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from active_restore.intercept.base import Territory
from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor
from active_restore.intercept.bpf_lsm import FIRST_TICKET, BpfInterceptor
from active_restore.marker import MARKER, marker_prefix, marker_value
from active_restore.model import Gate
from tests.kernel.disks import restore_id_of
from tests.kernel.waiting import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.intercept.base import Interceptor
    from active_restore.intercept.waits import Wait
    from active_restore.model import Fault

_ROWS = 10_000


def until(condition: Callable[[], object], what: str, seconds: float = DEADLINE_S) -> None:
    """Wait for a condition. Fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.002)


def state_of(pid: int, tid: int | None = None) -> str:
    """The state letter of a thread; empty where it is gone."""
    try:
        with open(f"/proc/{pid}/task/{tid or pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def load_modules(*names: str) -> None:
    """Load modules of the kernel, in a machine of ``tests/vm`` from where it keeps them."""
    place = "/run/modules" if os.path.isdir("/run/modules") else "/"
    subprocess.run(["modprobe", "-d", place, "-a", *names], check=True)


# Whoever is held must not be our own child: wait(2) for a child that we trace, too, returns its ptrace stops.
_RELAY = """
    open(my $report, ">&=", shift); $| = 1; $report->autoflush(1);
    my $pid = fork; if (!$pid) { close $report; exec @ARGV or exit 127 }
    print $report "$pid\\n"; waitpid($pid, 0); print $report "$?\\n";
"""


class Child:
    """A grandchild that runs a command; ``pid`` is its process id."""

    def __init__(self, *words: str | Path) -> None:
        read, write = os.pipe()
        self._relay = subprocess.Popen(
            ["perl", "-MIO::Handle", "-e", _RELAY, str(write), *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[write],
        )
        os.close(write)
        self._report = read
        self.pid = int(os.read(read, 64))

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._relay.poll() is None

    def finish(self, text: bytes = b"", seconds: float = DEADLINE_S) -> str:
        """What it printed, once it has ended."""
        try:
            out, _ = self._relay.communicate(text, timeout=seconds)
        except subprocess.TimeoutExpired:
            status = Path(f"/proc/{self.pid}/status").read_text()
            raise AssertionError(f"{self.pid} does not end\n{status}") from None
        if self._report >= 0:
            os.close(self._report)
            self._report = -1
        return out.decode()

    def status(self) -> int:
        """Its exit code, or the negative number of the signal that killed it."""
        status = int(os.read(self._report, 64))
        self.finish()
        return os.waitstatus_to_exitcode(status)


def python(code: str, *arguments: str | Path) -> Child:
    """A child that runs ``code`` with ``arguments`` in ``sys.argv[1:]``."""
    return Child(sys.executable, "-I", "-c", textwrap.dedent(code), *arguments)


class Guarded:
    """``root`` under guard. Faults are kept in ``faults``; rows in ``at_once`` are filled as they come."""

    def __init__(self, root: Path, run_dir: Path, interceptor: Interceptor | None = None) -> None:
        self.root, self.run_dir = root, run_dir
        restore_id = restore_id_of(root)
        self.prefix = marker_prefix(restore_id)
        self.territory = Territory(str(root), restore_id, self.prefix, str(run_dir), _ROWS)
        self.interceptor: Interceptor = interceptor or BpfInterceptor()
        self.paths: dict[int, Path] = {}
        self.contents: dict[int, bytes] = {}
        self.at_once: set[int] = set()
        self.faults: list[Fault] = []
        self._row = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.root.mkdir(exist_ok=True)
        self.interceptor.arm(self.territory)
        self.interceptor.laid()
        self.serve()
        return self

    def __exit__(self, *_: object) -> None:
        self.interceptor.disarm()
        self.join()

    def serve(self) -> None:
        """Start the threads of the interceptor."""
        for _ in range(self.interceptor.serve_threads):
            thread = threading.Thread(target=self.interceptor.serve, args=(self._on_fault,))
            thread.start()
            self._threads.append(thread)

    def join(self) -> None:
        """Wait for the threads of the interceptor."""
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def _on_fault(self, fault: Fault) -> None:
        self.faults.append(fault)
        if fault.row in self.at_once:
            self.fill(fault.row)

    def lay(self, name: str, content: bytes, mode: int = 0o644) -> int:
        """A new placeholder; returns its row."""
        self._row += 1
        row, path = self._row, self.root / name
        os.mknod(path, mode | 0o100000)
        os.truncate(path, len(content))
        os.setxattr(path, MARKER, marker_value(self.prefix, row))
        self.paths[row], self.contents[row] = path, content
        self.interceptor.add([(row, os.stat(path).st_ino)])
        return row

    def lay_now(self, name: str, content: bytes, mode: int = 0o644) -> Path:
        """A placeholder that is filled as soon as somebody wants it."""
        row = self.lay(name, content, mode)
        self.at_once.add(row)
        return self.paths[row]

    def of(self, row: int) -> list[Fault]:
        """The faults of a row so far."""
        return [fault for fault in self.faults if fault.row == row]

    def by_guard(self) -> set[bool]:
        """Whether the faults so far are of the guard beside BPF."""
        return {fault.ticket < FIRST_TICKET for fault in self.faults}

    def fill(self, row: int) -> None:
        """What the engine does: write, make durable, unmark, open the gate, let everybody go."""
        self.write(row)
        self.interceptor.release(row, Gate.ALL, self.of(row))

    def write(self, row: int) -> None:
        """The content, durable, and no marker."""
        path = self.paths[row]
        if path.exists() and row in self.contents:
            fd = os.open(path.name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.interceptor.passage())
            try:
                os.pwrite(fd, self.contents[row], 0)
                os.fdatasync(fd)
            finally:
                os.close(fd)
            os.removexattr(path, MARKER)
            del self.contents[row]

    def faulted(self, row: int, count: int = 1) -> None:
        """Wait until a row has this many faults."""
        until(lambda: len(self.of(row)) >= count, f"fault {count} of {self.paths[row].name}")

    def parked(self, pid: int, tid: int | None = None) -> None:
        """Wait until a thread is parked by ptrace."""
        until(lambda: state_of(pid, tid) == "t", f"parking of {pid}/{tid or pid} (now {state_of(pid, tid)!r})")

    def waiting(self) -> list[Wait]:
        """Everybody in the kernel's map of waiters."""
        bpf = self.interceptor._bpf if isinstance(self.interceptor, GuardedBpfInterceptor) else self.interceptor
        assert isinstance(bpf, BpfInterceptor)
        return list(bpf._waiters.all())

    def settle(self) -> None:
        """Fill what a test has left."""
        for row in list(self.contents):
            self.fill(row)
        until(lambda: not self.waiting(), "the end of all waits")
        self.faults.clear()
