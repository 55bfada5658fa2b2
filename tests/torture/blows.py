"""What befalls the processes of a restore: which one, and how it ends or stops."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    import random

    from tests.cli.machine import Command
    from tests.kernel.rig import Rig

KEEPER, STANDBY, WORKER, LAYER, AGENT = "ar-keeper", "ar-standby", "ar-worker", "ar-layer", "agent"
_ENDINGS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV)
# (weight, victims, whether they are stopped for a while instead of being ended)
_BLOWS = (
    (6, (AGENT,), False),
    (3, (AGENT, KEEPER), False),
    (4, (KEEPER,), False),
    (2, (STANDBY,), False),
    (1, (KEEPER, STANDBY), False),
    (4, (WORKER,), False),
    (1, (LAYER,), False),
    (2, (AGENT,), True),
    (2, (KEEPER,), True),
    (2, (WORKER,), True),
    (1, (AGENT, KEEPER), True),
)
_LONGEST_STOP_S = 0.4


class Attacker:
    """Deals blows and counts them. The guard's last holder is spared: what then happens is the kernel's (README, limits)."""

    def __init__(self, rig: Rig, dice: random.Random) -> None:
        self._rig = rig
        self._dice = dice
        self.dealt: Counter[str] = Counter()
        self.log: list[tuple[float, str, str]] = []
        self.seen: list[str] = []
        """Who was there at each blow."""

    def pause(self, longest_s: float) -> None:
        """A seeded moment from now; short ones are as likely as long ones."""
        threading.Event().wait(longest_s ** self._dice.random() * 0.001 ** self._dice.random())

    def strike(self, agent: Command, *, guarded: bool) -> None:
        """One blow. ``guarded``: the agent has said ready, so it holds the guard, too."""
        _, victims, stopped = self._dice.choices(_BLOWS, [blow[0] for blow in _BLOWS])[0]
        self.blow(agent, victims, stopped=stopped, guarded=guarded)

    def blow(self, agent: Command, victims: tuple[str, ...], *, stopped: bool = False, guarded: bool = False) -> None:
        """All of these at once; those that are not there are left out."""
        there = self._look(agent)
        pids = [(name, pid) for victim in victims for name, pid in there if name == victim]
        if not stopped:
            pids = self._spare(agent, pids, there, guarded=guarded)
        number = signal.SIGSTOP if stopped else self._dice.choice(_ENDINGS)
        for name, pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                self.dealt[f"{number.name} {name}"] += 1
                self.log.append((time.monotonic(), number.name, f"{name} {pid}"))
        self.seen.append(" ".join(f"{name} {pid}" for name, pid in there))
        if stopped:
            self.pause(_LONGEST_STOP_S)
            for _, pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            return
        for _, pid in pids:
            wait_until(lambda pid=pid: not _alive(pid), "a victim ends")  # type: ignore[misc]

    def deaths(self, *names: str) -> int:
        """How many of these were ended."""
        return sum(1 for _, number, name in self.log if name.split()[0] in names and number != signal.SIGSTOP.name)

    def _look(self, agent: Command) -> list[tuple[str, int]]:
        """Who is there, each by one name: at two looks a standby that takes over would be found as a standby, then as none."""
        others = ((name, pid) for pid, name in self._rig.names() if pid != agent.pid)
        return [*([(AGENT, agent.pid)] if _alive(agent.pid) else []), *others]

    def _spare(
        self, agent: Command, pids: list[tuple[str, int]], there: list[tuple[str, int]], *, guarded: bool
    ) -> list[tuple[str, int]]:
        """Without the keepers where nobody else would be left who holds the guard."""
        holders = {pid for name, pid in there if name in (KEEPER, STANDBY) or (name == AGENT and guarded)}
        if holders - {pid for _, pid in pids}:
            return pids
        return [(name, pid) for name, pid in pids if pid not in holders or (pid == agent.pid and not guarded)]


class Prison:
    """A cgroup with a memory limit, where the OOM killer rules (version 1 or 2); ``with`` removes it when it is empty.

    ``throttled`` (version 2 alone): nobody is killed there, but whoever wants more is slowed down (``memory.high``).
    """

    def __init__(self, name: str, limit_bytes: int, *, throttled: bool = False) -> None:
        self._word = "high" if throttled else "max"
        old = Path("/sys/fs/cgroup/memory")
        self._old = old.is_dir()
        self._place = (old if self._old else Path("/sys/fs/cgroup")) / name
        self._limit_bytes = limit_bytes
        self.way_in = ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._place / "cgroup.procs"))
        """What to write before a command line so that it runs inside."""

    def __enter__(self) -> Prison:
        if not self._old:
            (self._place.parent / "cgroup.subtree_control").write_text("+memory")
        self._place.mkdir()
        self._write()
        return self

    def widen(self, more_bytes: int) -> None:
        """Raise the limit."""
        self._limit_bytes += more_bytes
        self._write()

    def _write(self) -> None:
        (self._place / ("memory.limit_in_bytes" if self._old else f"memory.{self._word}")).write_text(str(self._limit_bytes))

    def killed(self) -> int:
        """How many processes the kernel has killed here."""
        text = (self._place / ("memory.oom_control" if self._old else "memory.events")).read_text()
        return int(text.split("oom_kill ")[1].split()[0])

    def pressed(self) -> int:
        """How often its processes met the limit, and had to give back pages or wait until some were written."""
        if self._old:
            return int((self._place / "memory.failcnt").read_text())
        return int((self._place / "memory.events").read_text().split(f"{self._word} ")[1].split()[0])

    def __exit__(self, *_: object) -> None:
        wait_until(self._removed, f"{self._place} can be removed")

    def _removed(self) -> bool:
        with contextlib.suppress(OSError):
            self._place.rmdir()
        return not self._place.exists()


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False
