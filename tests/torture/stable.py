"""Agents without the start of an interpreter for each (see ``warm``), for tests that have threads themselves."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import IO, TYPE_CHECKING

from tests.cli.machine import ROOT, Command
from tests.kernel.rig import Rig
from tests.kernel.waiting import DEADLINE_S
from tests.torture.forker import ROOM, ROOM_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class Stable:
    """The test's end of a process that forks agents; ``with`` ends it. It belongs to no rig."""

    def __enter__(self) -> Stable:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = {**os.environ, ROOM: "x" * ROOM_BYTES}
        argv = [sys.executable, "-m", "tests.torture.forker", str(theirs.fileno())]
        self._process = subprocess.Popen(argv, cwd=ROOT, env=env, pass_fds=[theirs.fileno()])
        theirs.close()
        return self

    def start(self, arguments: Sequence[str], env: Mapping[str, str]) -> Warm:
        """An agent."""
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        request = json.dumps((list(arguments), dict(env))).encode()
        socket.send_fds(self._sock, [request], [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        out, err, fate = (read for read, _ in pipes)
        return Warm(os.fdopen(out), os.fdopen(err), os.fdopen(fate))

    def __exit__(self, *_: object) -> None:
        self._sock.close()
        assert self._process.wait(DEADLINE_S) == 0


class Warm:
    """What ``Command`` uses of ``subprocess.Popen``."""

    def __init__(self, out: IO[str], err: IO[str], fate: IO[str]) -> None:
        self.stdout = out
        self.stderr = err
        self._fate = fate
        self._code: int | None = None
        self.pid = int(fate.readline())

    def poll(self) -> int | None:
        """Its exit code, once it has one."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a warm agent", timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self._code is None:
            poll = select.poll()
            poll.register(self._fate, select.POLLIN)
            if poll.poll(None if timeout is None else timeout * 1000):
                self._code = int(self._fate.readline())
                self._fate.close()
        return self._code

    def send_signal(self, sig: int) -> None:
        """To this process only."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class WarmRig(Rig):
    """A rig whose agents come out of a stable."""

    def __init__(self, place: Path, tree: Path, stable: Stable) -> None:
        super().__init__(place, tree)
        self._stable = stable

    def start(self, *arguments: str | Path) -> Command:
        """As ever, but warm."""
        words = [*map(str, arguments), "--json"]
        command = Command(self._stable.start(words, self.env))
        self._commands.append(command)
        return command
