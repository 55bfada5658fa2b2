"""The wall clock jumps while a restore runs, and between its agents: nobody waits longer, is refused or gets a wrong time.

A preloaded library shifts the clock of the agent and all its processes (``clock.c``); what the kernel notes in files is shifted
by hand.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from active_restore.config import LimitWindow
from tests.kernel.rig import marked
from tests.kernel.tasks import Task, read
from tests.kernel.waiting import wait_until
from tests.restore.agents import kill, make
from tests.torture import bad_server
from tests.torture.test_bad_sources import Remote

if TYPE_CHECKING:
    from tests.kernel.rig import Rig

_HOUR, _DAY = 3600, 86400


class Clock:
    """The clock of whatever is started with the environment of a rig."""

    def __init__(self, rig: Rig) -> None:
        library, page = rig.place / "clock.so", rig.place / "offset"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
        page.write_bytes(bytes(mmap.PAGESIZE))
        with page.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        rig.env |= {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(page), "ACTIVE_RESTORE_LOG": str(rig.place / "logbooks")}
        self._books = rig.place / "logbooks"

    def jump(self, seconds: int) -> None:
        """To so many seconds after the true time."""
        struct.pack_into("q", self._page, 0, seconds)

    def seen(self) -> list[float]:
        """How far from the true time the moments in the logbooks are, in days."""
        lines = [line for book in self._books.rglob("*.jsonl") for line in book.read_text().splitlines()]
        return [(json.loads(line)["t"] - time.time()) / _DAY for line in lines]


def test_the_clock_jumps_while_tasks_wait(rig: Rig, ext4_target: Path) -> None:
    """Forward and back by days: while a task waits for a source that is away, with limits by the hour, from agent to agent."""
    remote = Remote(rig.place / "server", rig)
    try:
        clock = Clock(rig)
        command = rig.restore(ext4_target, "--limit", "1")
        for name, days in (("f1", 10), ("f2", -400)):
            clock.jump(days * _DAY)
            assert read(ext4_target / name) == remote.files[name]
        badness = remote.spoil(bad_server.status(503))
        with Task("cat", ext4_target / "f15") as task:
            task.held()
            for days in (30, -30):
                clock.jump(days * _DAY)
                met = badness.met
                wait_until(lambda: badness.met > met, "it is tried again")  # noqa: B023
            with rig.control(ext4_target) as client:
                wait_until(lambda: client.status().source_unreachable_s > 0, "the agent tells that it cannot reach the source")
                status = client.status()
            assert [wait.path for wait in status.waiting] == [b"f15"]
            assert 0 < status.source_unreachable_s < _HOUR
            assert 0 <= status.waiting[0].waited_ms < _HOUR * 1000
            assert 0 < status.seconds < _HOUR
            badness.cure()
            assert task.output() == remote.files["f15"]
        clock.jump(0)
        _limits_follow_the_clock(rig, ext4_target, clock)
        kill(command)
        clock.jump(-2 * _DAY)
        with Task("cat", ext4_target / "f16") as task:
            task.held()
            again = rig.resume(ext4_target)
            assert task.output() == remote.files["f16"]
        rig.finish(again, ext4_target)
        assert max(map(abs, clock.seen())) > 1, "its clock did not jump"
        rig.verify(ext4_target)
    finally:
        remote.stop()


def _in(hours: int) -> tuple[int, int]:
    """The minute of the day then, and the seconds until then."""
    then = time.localtime(time.time() + hours * _HOUR)
    return then.tm_hour * 60 + then.tm_min, hours * _HOUR


def _limits_follow_the_clock(rig: Rig, target: Path, clock: Clock) -> None:
    """It is another hour at once, and again the one before."""
    # Not around midnight, where a window ends.
    minute, jump = next(found for hours in (6, 10) if 90 <= (found := _in(hours))[0] <= 1350)
    with rig.control(target) as client:
        client.limit(1, [LimitWindow(minute - 90, minute + 90, 2)])
        for seconds, limit in ((0, 1), (jump, 2), (0, 1)):
            clock.jump(seconds)
            wait_until(lambda: client.status().limit_bytes_per_s == limit, "the limit of that hour")  # noqa: B023


@pytest.mark.parametrize("mutable", [False, True], ids=["restic", "dir"])
def test_lost_state_and_a_file_truncated_before_it_was_laid(held_rig: Rig, ext4_target: Path, *, mutable: bool) -> None:
    """So it looks, where the clock was set back, that somebody truncated a placeholder while nobody guarded it.

    A directory may have changed as well, so there the user must say so.
    """
    remote = Remote(held_rig.place / "server", held_rig)
    try:
        if mutable:
            held_rig.source = f"dir:{held_rig.tree}"
            make(held_rig.tree)
        command = held_rig.hold(ext4_target)
        with held_rig.control(ext4_target) as client:
            client.pause()
        kill(command)
        held_rig.kill("ar-")
        victim = next(path for path in sorted(ext4_target.glob("f*")) if marked(path))
        os.truncate(victim, 5)
        os.utime(victim, ns=(10**18, 10**18))
        shutil.rmtree(held_rig.place / "state")
        if mutable:
            done = held_rig.run("resume", ext4_target)
            assert done.returncode == 1
            assert f"(see {victim.name})" in done.stderr
            victim.unlink()
        held_rig.finish(held_rig.resume(ext4_target), ext4_target)
        held_rig.assert_clean(ext4_target)
        if not mutable:
            assert victim.read_bytes() == remote.files[victim.name][:5]
            assert victim.stat().st_mtime_ns == 10**18
    finally:
        remote.stop()
