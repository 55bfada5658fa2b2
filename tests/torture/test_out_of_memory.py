"""Memory that is too small: the OOM killer takes agents, layers and workers, or all are throttled by somebody's dirty pages.

Whoever waits is served, and nobody sees a wrong byte.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from typing import TYPE_CHECKING

from tests.kernel.rig import INTERCEPTORS
from tests.kernel.tasks import Task, run
from tests.kernel.waiting import wait_until
from tests.restore.agents import make
from tests.torture.blows import Prison
from tests.torture.life import fill
from tests.torture.users import Crowd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

MIB = 1 << 20
# It takes more than 100 MiB to compile BPF.
_FIRST_LIMIT, _ROOM_BYTES = (100 * MIB, 320 * MIB) if INTERCEPTORS[0] == "bpf" else (20 * MIB, 224 * MIB)
_STEP = 10 * MIB
_MAX_STARTS = 60
_FLOOD_MIB = 160
FLOOD = """
import os, sys
part = os.urandom(1 << 20)
fd = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
os.write(1, b'here\\n')
for number in range(int(sys.argv[1])):
    os.pwrite(fd, part, number << 20)
"""


def test_too_little_memory(rig: Rig, ext4_target: Path) -> None:
    """All processes of a restore in a cgroup that is far too small; each time that the kernel kills it gets a little more."""
    fill(rig.tree)
    ext4_target.mkdir()
    crowd = Crowd(rig.tree, ext4_target, rig.place, random.Random(1))
    with Prison(f"active-restore-test-{os.getpid()}", _FIRST_LIMIT) as prison:
        rig.way_in = prison.way_in
        try:
            _until_done(rig, ext4_target, prison)
            assert crowd.see_off() == 0
        finally:
            crowd.end()
        assert prison.killed() > 1, "the kernel killed nobody: the first limit is too high"
        assert list(crowd.wrong()) == []
        rig.assert_clean(ext4_target)


def test_dirty_pages_fill_all_memory(rig: Rig, target: Path) -> None:
    """Agent, tasks and two who write much more than there is memory for share one cgroup: all wait for the disk, and go on."""
    names = make(rig.tree, 60, 100_000)
    (rig.tree / "zz-big").write_bytes(os.urandom(24 * MIB))
    with Prison(f"active-restore-test-{os.getpid()}", _ROOM_BYTES) as prison, contextlib.ExitStack() as stack:
        rig.way_in = prison.way_in
        command = rig.restore(target, "--limit", "8MiB/s")
        argv = (*prison.way_in, sys.executable, "-S", "-E", "-c", FLOOD, str(_FLOOD_MIB))
        floods = [stack.enter_context(Task(*argv, target / f"flood{n}")) for n in (1, 2)]
        assert [task.line() for task in floods] == [b"here\n"] * 2
        for name in names[::-7]:
            assert run(*prison.way_in, "cat", target / name) == (rig.tree / name).read_bytes()
        for task in floods:
            task.output()
        assert command.end()[0] == 0
        assert prison.pressed(), "there was too much room"
        assert not prison.killed()
    for number in (1, 2):
        (target / f"flood{number}").unlink()
    done = rig.run("verify", rig.source, target, "--extra")
    assert all("mtime" in line or "NOT equal" in line for line in done.stdout.splitlines()[:2]), done.stdout
    rig.assert_clean(target)


def _until_done(rig: Rig, target: Path, prison: Prison) -> None:
    state = rig.place / "state"
    dead = 0
    for _ in range(_MAX_STARTS):
        again = state.exists() and any((place / "restore.json").exists() for place in state.iterdir())
        begin = ("restore", rig.source, target, "--interceptor", INTERCEPTORS[0])
        command = rig.start("resume", target) if again else rig.start(*begin)
        while not command.ended():
            wait_until(lambda: command.ended() or prison.killed() > dead, "an end, or another victim")  # noqa: B023
            prison.widen((prison.killed() - dead) * _STEP)
            dead = prison.killed()
        code, errors = command.end()
        if code == 0:
            return
        assert "Traceback" not in errors, errors
        prison.widen(_STEP)
    raise AssertionError(f"no agent comes to the end: {code} {errors}")
