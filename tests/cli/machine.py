"""A command that runs while a test does, seen from outside."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

from tests.kernel.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]


class Child(Protocol):
    """What is used of ``subprocess.Popen``."""

    @property
    def pid(self) -> int: ...
    @property
    def stdout(self) -> IO[str] | None: ...
    @property
    def stderr(self) -> IO[str] | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


class Command:
    """A running command whose JSON lines can be waited for."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.pid = self._child.pid
        self._lines: queue.Queue[str] = queue.Queue()
        self._kinds: set[str] = set()
        self.troubles: list[dict[str, Any]] = []
        """What it refused, noticed and failed with."""
        self._err: list[str] = []
        self._readers = [threading.Thread(target=self._read_out), threading.Thread(target=self._read_err)]
        for reader in self._readers:
            reader.start()

    @classmethod
    def started(cls, argv: list[str], env: dict[str, str]) -> Command:
        """Start it."""
        env = {**env, "PYTHONFAULTHANDLER": "1"}
        return cls(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    def _read_out(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as out:
            for line in out:
                self._lines.put(line)
                self._remember(json.loads(line))
        self._lines.put("")

    def _remember(self, event: dict[str, Any]) -> None:
        self._kinds.add(str(event["event"]))
        if event["event"] in ("refused", "notice", "error"):
            self.troubles.append(event)

    def _read_err(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as err:
            self._err.append(err.read())

    def until(self, kind: str) -> dict[str, Any]:
        """The next event of this kind. Fails when the command ends or a minute goes by without it."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.1))
            except queue.Empty:
                self._fail(f"waited in vain for {kind}")
            if not line:
                self.end()
                raise AssertionError(f"ended without {kind}: {''.join(self._err)}")
            event: dict[str, Any] = json.loads(line)
            if event["event"] == kind:
                return event

    def seen(self, kind: str) -> bool:
        """Whether an event of this kind has come (``until`` takes events away, this one does not)."""
        return kind in self._kinds

    def ended(self) -> bool:
        """Whether the process is over."""
        return self._child.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process only."""
        self._child.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for the end; exit code and what it said on stderr."""
        try:
            code = self._child.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._fail("it does not end")
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return code, "".join(self._err)

    def _fail(self, why: str) -> NoReturn:
        """With what each of its threads is doing: it runs with PYTHONFAULTHANDLER."""
        self._child.send_signal(signal.SIGABRT)
        self._child.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        raise AssertionError(f"{why}: {''.join(self._err)}")

    def kill(self) -> None:
        """End it, whatever state it is in."""
        if self._child.poll() is None:
            self._child.kill()
        self.end()
