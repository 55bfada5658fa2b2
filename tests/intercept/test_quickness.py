"""What lets tasks wait no longer than they must: processors that do not sleep while many wait, and room for many at once."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from active_restore.intercept.fanotify import FanotifyInterceptor
from active_restore.marker import MARKER, marker_value
from active_restore.model import Gate
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from active_restore.intercept.base import Territory

_AT_ONCE = 1 << 14


@pytest.fixture
def guarded(territory: Territory) -> Iterator[FanotifyInterceptor]:
    """A file system that is guarded and laid."""
    interceptor = FanotifyInterceptor()
    interceptor.arm(territory)
    interceptor.laid()
    yield interceptor
    interceptor.disarm()


def _keeps_awake(pid: int) -> bool:
    links = Path(f"/proc/{pid}/fd").iterdir()
    found = []
    for link in links:
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return "/dev/cpu_dma_latency" in found


def _test_awake(keeper: int, names: Iterator[Path]) -> None:
    def open_some() -> bool:
        for path in itertools.islice(names, 256):
            path.open().close()
        return _keeps_awake(keeper)

    assert not _keeps_awake(keeper)
    wait_until(open_some, "the keeper keeps processors awake")
    wait_until(lambda: not _keeps_awake(keeper), "and lets them sleep again when it is quiet")


def test_processors_stay_awake_while_many_files_are_opened_first(territory: Territory, guarded: FanotifyInterceptor) -> None:
    """Each first open wakes the keeper, and then the task: on processors that sleep in between, most of the time is that."""
    directory = Path(territory.root, "new")
    directory.mkdir()

    def new_files() -> Iterator[Path]:
        for number in itertools.count():
            path = directory / str(number)
            path.touch()
            yield path

    try:
        _test_awake(guarded.keeper_pid, new_files())
    finally:
        shutil.rmtree(directory)


def test_and_while_one_is_opened_often_that_is_not_settled(territory: Territory, guarded: FanotifyInterceptor) -> None:
    path = Path(territory.root, "filled")
    # Not opened before it has a marker, or the guard would not look at it again.
    os.mknod(path)
    os.setxattr(path, MARKER, marker_value(territory.marker_prefix, 1))
    try:
        guarded.release(1, Gate.READ, [])
        _test_awake(guarded.keeper_pid, itertools.repeat(path))
    finally:
        path.unlink()


def _table_of(pid: int | str) -> int:
    """For how many descriptors a process has room (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("FDSize:")).split()[1])


def test_keeper_has_room_for_many_events(guarded: FanotifyInterceptor) -> None:
    assert _table_of(guarded.keeper_pid) >= _AT_ONCE


@pytest.mark.parametrize("limit", [_AT_ONCE, 512])
def test_room_for_many_files(limit: int) -> None:
    """At once: a thread that needs one descriptor too many waits for the kernel, and a task for the thread."""
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, {limit}))\n"
        "from active_restore.linux.process import allow_many_files; allow_many_files()\n"
        "print(open('/proc/self/status').read())"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert f"FDSize:\t{limit}\n" in told
