"""What BPF costs and where the time of its faults goes. ``make bench-vm`` runs this on a kernel that takes BPF.

That is a machine with an emulated processor, slow, and not equally slow in everything: ratios of two figures of one run
say something, seconds are those of the emulation.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.intercept import hold
from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor
from active_restore.intercept.fanotify import FanotifyInterceptor
from active_restore.intercept.pins import directory
from active_restore.model import Gate
from active_restore.predict.opens import BpfOpens, FanotifyOpens
from bench.disk import quiet
from bench.hooks import Hooks
from bench.row import Goal, row
from bench.rows import registration
from bench.table import show
from tests.vm.inside.territory import Guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.row import Row

_DISK = Path("/run/disk/ext4")
_FILES, _PASSES, _ROUNDS = 1000, 5, 9
_FAULTS = 40
_WAITS_MS = (0.5, 1, 2, 3, 5, 10, 20, 100)
_HOOK_GOAL = Goal("ours/peer", "<=", 1.10)
_RECORDING_GOAL = Goal("ours/peer", "<=", 1.05)
# Absolute paths need no directory to start from.
_ROOT = -100
_CONTENT = b"what the backup holds\n" * 400


class Opens:
    """Opens of files that are no placeholders, on the guarded file system."""

    def __init__(self, place: Path, program: Path) -> None:
        self._place, self._program = place, program
        self._made = 0

    def fresh(self) -> list[str]:
        """Files that nobody has opened yet."""
        self._made += 1
        folder = self._place / f"plain{self._made}"
        folder.mkdir()
        paths = [folder / str(number) for number in range(_FILES)]
        for path in paths:
            os.mknod(path, 0o100644)
        return list(map(str, paths))

    def time(self, paths: list[str], passes: int = _PASSES) -> list[float]:
        """Microseconds of one open and close, for each pass."""
        text = "".join(f"{path}\n" for path in paths)
        done = subprocess.run([self._program, str(passes)], input=text, capture_output=True, text=True, check=True)
        return [int(line) / 1e3 for line in done.stdout.split()]


def compiled(name: str, place: Path) -> Path:
    """A program of ``bench/c``."""
    quiet("gcc", "-O2", "-o", str(place / name), str(Path(__file__).parent / "c" / f"{name}.c"))
    return place / name


@contextmanager
def guarded(name: str, place: Path) -> Iterator[Guarded]:
    """BPF and its guard over an empty directory."""
    run_dir = place / name
    run_dir.mkdir()
    with Guarded(_DISK / name, run_dir, GuardedBpfInterceptor(required=True)) as made:
        yield made


def hooks(opens: Opens, place: Path) -> Iterator[Row]:
    """Programs on, programs off, in turns; the guard has learned the files before. Then the guard alone, and nobody."""
    files = opens.fresh()
    free = opens.time(files)
    without: list[float] = []
    with_hooks: list[float] = []
    with guarded("hooks", place) as made:
        first = opens.time(opens.fresh(), passes=1)
        opens.time(files)
        programs = Hooks(directory(made.territory.restore_id))
        for _ in range(_ROUNDS):
            programs.off()
            without += opens.time(files)
            programs.on()
            with_hooks += opens.time(files)
        programs.close()
    after = opens.time(files)
    name = "open of another file"
    yield row(f"{name}, programs on", "us", with_hooks, ("the same, programs off", without), _HOOK_GOAL)
    yield row(f"{name}, programs and guard", "us", with_hooks, ("nothing of ours", [*free, *after]))
    yield row(f"{name}, programs and guard, first", "us", first, ("nothing of ours", [*free, *after]))


def fanotify_alone(opens: Opens, place: Path) -> Iterator[Row]:
    """With ignore marks (later opens) and without (each file's first)."""
    files = opens.fresh()
    free = opens.time(files)
    run_dir = place / "fanotify"
    run_dir.mkdir()
    guard = Guarded(_DISK / "fanotify", run_dir, FanotifyInterceptor())
    with guard:
        first = opens.time(files, passes=1) + opens.time(opens.fresh(), passes=1)
        later = opens.time(files)
    after = opens.time(files)
    name = "open of another file, fanotify alone"
    yield row(f"{name}, with ignore marks", "us", later, ("nothing of ours", [*free, *after]))
    yield row(f"{name}, without", "us", first, ("nothing of ours", [*free, *after]))


def recording(opens: Opens) -> Iterator[Row]:
    """Later opens of files while first opens are recorded: by a program, by fanotify, and not at all, in turns."""
    files = opens.fresh()
    for path in files:
        Path(path).write_bytes(b"content")
    times: dict[str, list[float]] = {"bpf": [], "fanotify": [], "": []}
    for _ in range(3):
        for kind in times:
            with contextlib.ExitStack() as stack:
                if kind:
                    source = stack.enter_context(contextlib.closing((BpfOpens if kind == "bpf" else FanotifyOpens)(str(_DISK))))
                    opens.time(files, passes=1)
                    for event in source.read():
                        source.told(_ROOT, os.path.join(os.fsencode(Path(files[0]).parent), event.name))
                times[kind] += opens.time(files)
    for kind in ("bpf", "fanotify"):
        yield row(f"open of a file, recorded by {kind}, later", "us", times[kind], ("not recorded", times[""]), _RECORDING_GOAL)


class Waiter:
    """A task that opens what it is told to."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def open(self, path: Path, meanwhile: Callable[[], None]) -> tuple[int, int, int]:
        """Before and after (CLOCK_MONOTONIC) and its processor time, in nanoseconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        meanwhile()
        before, after, cpu = map(int, self._process.stdout.readline().split())
        return before, after, cpu

    def end(self) -> None:
        """End it."""
        self._process.communicate()


class Timed(Guarded):
    """Fills at once, and knows when it was told and when it let go, in nanoseconds (CLOCK_MONOTONIC)."""

    delivered = released = 0

    def fill(self, row: int) -> None:
        """As ever."""
        self.delivered = time.monotonic_ns()
        self.write(row)
        self.released = time.monotonic_ns()
        self.interceptor.release(row, Gate.ALL, self.of(row))


def faults(place: Path, program: Path) -> Iterator[Row]:
    """Where the time of a fault goes, from the kernel's entry on."""
    parts: dict[str, list[float]] = {"event delivery": [], "restore (write, sync, unmark)": [], "release": [], "whole": []}
    (place / "faults").mkdir()
    with Timed(_DISK / "faults", place / "faults", GuardedBpfInterceptor(required=True)) as made:
        waiter = Waiter(program)
        for number in range(_FAULTS):
            _, after, _ = waiter.open(made.lay_now(f"file{number}", _CONTENT), lambda: None)
            since = made.faults[-1].since_ns
            parts["event delivery"].append((made.delivered - since) / 1e3)
            parts["restore (write, sync, unmark)"].append((made.released - made.delivered) / 1e3)
            parts["release"].append((after - made.released) / 1e3)
            parts["whole"].append((after - since) / 1e3)
        waiter.end()
    whole = parts.pop("whole")
    for name, values in parts.items():
        yield row(f"fault: {name}", "us", values, ("the whole fault", whole))


def parking(place: Path, program: Path) -> Iterator[Row]:
    """Processor time of task and agent for waits of some length: parked at once against spinning all the time."""
    before = hold._PARK_AFTER_NS
    used: dict[tuple[bool, float], list[float]] = {}
    with guarded("parking", place) as made:
        waiter = Waiter(program)
        for number in range(5):
            for milliseconds in _WAITS_MS:
                for parks in (True, False):
                    hold._PARK_AFTER_NS = 0 if parks else 3600 * 10**9
                    taken = _wait(made, waiter, f"{number}-{milliseconds}-{parks}", milliseconds)
                    used.setdefault((parks, milliseconds), []).append(taken)
        waiter.end()
    hold._PARK_AFTER_NS = before
    middle = {how: statistics.median(taken) for how, taken in used.items()}
    pays = [milliseconds for milliseconds in _WAITS_MS if middle[True, milliseconds] < middle[False, milliseconds]]
    print(f"  parking pays for waits of {min(pays, default=math.inf):g} ms and more", file=sys.stderr, flush=True)
    for milliseconds in _WAITS_MS:
        name = f"processor time for a wait of {milliseconds:g} ms, parked"
        yield row(name, "us", used[True, milliseconds], ("spinning", used[False, milliseconds]))


def _wait(made: Guarded, waiter: Waiter, name: str, milliseconds: float) -> float:
    """Microseconds of processor time, of the task and of this process."""
    row_number = made.lay(name, _CONTENT)
    agent = 0

    def fill_later() -> None:
        nonlocal agent
        made.faulted(row_number)
        began = time.process_time_ns()
        time.sleep(milliseconds / 1e3)
        agent = time.process_time_ns() - began
        made.fill(row_number)

    _, _, cpu = waiter.open(made.paths[row_number], fill_later)
    return (cpu + agent) / 1e3


def main() -> None:
    """All of it, one table; and ``lsm.json`` where the machine's results are taken from."""
    exchange = Path(os.environ.get("ACTIVE_RESTORE_VM_EXCHANGE", "."))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        opens = Opens(_DISK, compiled("opens", place))
        waiter = compiled("waiter", place)
        parts = (
            hooks(opens, place),
            fanotify_alone(opens, place),
            recording(opens),
            faults(place, waiter),
            parking(place, waiter),
            registration.measured(1_000_000, 1),
        )
        for part in parts:
            rows += part
            print(f"  {rows[-1].name}: {statistics.fmean([rows[-1].ours]):g}", file=sys.stderr, flush=True)
    (exchange / "lsm.json").write_text(json.dumps([one.as_dict() for one in rows], indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
