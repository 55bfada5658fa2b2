"""The life of one restore under attack, from its beginning to its good end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from typing import TYPE_CHECKING

from active_restore.control.registry import directory_name
from active_restore.ebpf.spared import spared
from tests.kernel.rig import INTERCEPTORS, traces
from tests.kernel.waiting import DEADLINE_S, wait_until
from tests.torture.blows import AGENT, KEEPER, LAYER, STANDBY, WORKER, Attacker
from tests.torture.users import Crowd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.machine import Command
    from tests.kernel.rig import Rig

KIB, MIB = 1 << 10, 1 << 20
_PHASES = ("", "planning", "laying", "laying", "revealing", "restoring")
_LIMITS = ("1MiB/s", "2MiB/s", "6MiB/s", "20MiB/s")
_BLOWS = (45, 75)
_MAX_STARTS = 14
_LONGEST_START_S = 3
# A keeper reads at most two events at once, and a dying one may still get a read done.
_ERRORS_A_DEATH = 4


def fill(tree: Path) -> None:
    """About a hundred files of every size, in folders, and a thousand that are empty: laying takes its time."""
    dice = random.Random(6)
    for number in range(90):
        folder = tree / f"d{number % 9}" / f"e{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number:03}").write_bytes(dice.randbytes(dice.choice((10, 4 * KIB, 40 * KIB, 300 * KIB))))
    for number in range(3):
        (tree / f"large{number}").write_bytes(dice.randbytes(11 * MIB))
    (tree / "many").mkdir()
    for number in range(1500):
        (tree / "many" / f"empty{number}").touch()


class Life:
    """One restore onto ``target``; every choice follows from the seed (the moments are the machine's all the same)."""

    def __init__(self, rig: Rig, target: Path, seed: int, most_blows: int = _BLOWS[1]) -> None:
        self._rig = rig
        self._target = target
        self._seed = seed
        self._agents: list[Command] = []
        self._dice = random.Random(seed)
        self._blows = min(self._dice.randint(*_BLOWS), most_blows)
        self.attacker = Attacker(rig, self._dice)
        self._guarded = False
        self._over = False

    def live(self) -> None:
        """Begin, be attacked, go on, end. Every invariant is asserted on the way."""
        self._target.mkdir()
        crowd = Crowd(self._rig.tree, self._target, self._rig.place, self._dice, pause_s=0.3)
        agent = self._begin()
        try:
            self._first_blow(agent)
            for _ in range(self._blows):
                if self._over:
                    break
                agent = self._going_on(agent)
                self._let_live(agent)
                self.attacker.strike(agent, guarded=self._guarded)
            agent = self._finish(agent, crowd)
            deaths = self.attacker.deaths(KEEPER, STANDBY)
            assert crowd.see_off() <= _ERRORS_A_DEATH * deaths, f"{deaths} keepers were ended"
        except AssertionError as error:
            told = f"seed {self._seed}, on {self._target}; blows {self.attacker.log}; {self._troubles()}"
            error.add_note(f"{told}; seen {self.attacker.seen}; {self._keepers_log()}")
            raise
        else:
            assert list(crowd.wrong()) == [], self._seed
        finally:
            crowd.end()
            agent.kill()
        assert traces(self._target) == []
        self._rig.assert_clean(self._target)

    def _begin(self) -> Command:
        self._guarded = False
        how = ("--limit", self._dice.choice(_LIMITS), "--interceptor", INTERCEPTORS[0])
        return self._start("restore", self._rig.source, self._target, *how)

    def _start(self, *arguments: str | Path) -> Command:
        self._agents.append(self._rig.start(*arguments))
        return self._agents[-1]

    def _troubles(self) -> list[object]:
        return [agent.troubles for agent in self._agents]

    def _keepers_log(self) -> list[str]:
        return [path.read_text() for path in (self._rig.place / "run").glob("*/keeper.log")]

    def _let_live(self, agent: Command) -> None:
        """A moment; mostly one in which it has come as far as to have workers, or it would seldom get there."""
        if self._dice.random() < 0.6:
            with contextlib.suppress(AssertionError):
                wait_until(lambda: agent.ended() or agent.seen("ready"), "it is ready", _LONGEST_START_S)
        self.attacker.pause(1.0)

    def _first_blow(self, agent: Command) -> None:
        """In a phase that a random moment would seldom meet."""
        phase = self._dice.choice(_PHASES)
        if phase:
            with contextlib.suppress(AssertionError):
                wait_until(lambda: self._phase() == phase or agent.ended(), f"the phase {phase}", 10)
        self.attacker.pause(0.3)
        victims = self._dice.choice([(AGENT,), (AGENT,), (AGENT, KEEPER), (LAYER,), (KEEPER,), (STANDBY,), (WORKER,)])
        self.attacker.blow(agent, victims)

    def _phase(self) -> str:
        state = self._rig.place / "state" / directory_name(str(self._target)) / "restore.json"
        # It may have the number of a placeholder that a user deleted.
        with contextlib.suppress(OSError, ValueError), spared():
            return str(json.loads(state.read_text())["phase"])
        return ""

    def _going_on(self, agent: Command) -> Command:
        """The same agent if it lives, else the next one."""
        if not agent.ended():
            if not self._guarded:
                self._guarded = agent.seen("ready")
            return agent
        code, errors = agent.end()
        self.attacker.log.append((time.monotonic(), f"ended with {code} {errors}", AGENT))
        if code == 0 or self._over:
            return agent
        assert "Traceback" not in errors, errors
        self._guarded = False
        if self._phase():
            return self._start("resume", self._target)
        if os.listdir(self._target):
            # It was hit when all was done and forgotten: nothing may be left to resume. (The next command tidies up.)
            self._over = True
            assert "no restore is known" in self._rig.run("resume", self._target).stderr
            return agent
        # It gave up before anything was visible (its guard or its layer was killed): begin again.
        return self._begin()

    def _finish(self, agent: Command, crowd: Crowd) -> Command:
        """No more blows: the users get through, and the restore ends well."""
        for _ in range(_MAX_STARTS):
            agent = self._going_on(agent)
            wait_until(lambda: agent.ended() or agent.seen("ready"), "an agent is ready", DEADLINE_S)  # noqa: B023
            if not agent.ended():
                wait_until(lambda: agent.ended() or not crowd.busy(), "the users are through", DEADLINE_S)  # noqa: B023
                with contextlib.suppress(Exception):
                    self._rig.hurry(self._target)
            code, errors = agent.end()
            if code == 0 or self._over:
                return agent
            assert code < 0 or not self._guarded, f"an agent that nobody hurt gave up: {code} {errors}"
        raise AssertionError(f"no agent comes to the end: {errors}")
