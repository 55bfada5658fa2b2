"""A small machine to restore on: a loop-mounted file system, directories for state and sockets, and the command itself."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import signal

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class Command:
    """A running command whose JSON lines can be waited for."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._child = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.pid = self._child.pid
        self._lines: queue.Queue[str] = queue.Queue()
        self._err: list[str] = []
        self._readers = [threading.Thread(target=self._read_out), threading.Thread(target=self._read_err)]
        for reader in self._readers:
            reader.start()

    def _read_out(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as out:
            for line in out:
                self._lines.put(line)
        self._lines.put("")

    def _read_err(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as err:
            self._err.append(err.read())

    def until(self, kind: str) -> dict[str, Any]:
        """The next event of this kind. Fails when the command ends or a minute goes by without it."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.1))
            if not line:
                self.end()
                raise AssertionError(f"ended without {kind}: {''.join(self._err)}")
            event: dict[str, Any] = json.loads(line)
            if event["event"] == kind:
                return event

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process only."""
        self._child.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for the end; exit code and what it said on stderr."""
        code = self._child.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return code, "".join(self._err)

    def kill(self) -> None:
        """End it, whatever state it is in."""
        if self._child.poll() is None:
            self._child.kill()
        self.end()


class Machine:
    """``with Machine(tmp_path) as machine``: ``machine.mount`` is a file system of its own."""

    def __init__(self, place: Path, mkfs: tuple[str, ...] = ("mkfs.ext4", "-q", "-F"), size_bytes: int = 512 << 20) -> None:
        self.place = place
        self.mount = place / "mount"
        self._mkfs = mkfs
        self._size = size_bytes
        self._commands: list[Command] = []
        self.env = {
            **os.environ,
            "ACTIVE_RESTORE_STATE": str(place / "state"),
            "ACTIVE_RESTORE_RUN": str(place / "run"),
            "PYTHONPATH": str(ROOT / "agent"),
            "RESTIC_CACHE_DIR": str(place / "cache"),
        }

    def __enter__(self) -> Machine:
        image = self.place / "image"
        with open(image, "wb") as file:
            file.truncate(self._size)
        subprocess.run([*self._mkfs, image], check=True, stdout=subprocess.DEVNULL)
        self.mount.mkdir()
        subprocess.run(["mount", "-o", "loop", image, self.mount], check=True)
        return self

    def __exit__(self, *error: object) -> None:
        for command in self._commands:
            command.kill()
        # Keepers and workers of an agent that was killed end by themselves; until then they keep the mount busy.
        deadline = time.monotonic() + DEADLINE_S
        while subprocess.run(["umount", self.mount], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"{self.mount} stays busy"
            subprocess.run([*self.argv("release"), str(self.mount / "tree")], env=self.env, capture_output=True, check=False)
            threading.Event().wait(0.1)

    def argv(self, *arguments: str | Path) -> list[str]:
        """The command line of the command."""
        script = "from active_restore.cli.main import run; run()"
        return [sys.executable, "-c", script, *map(str, arguments)]

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A command from its beginning to its end."""
        argv = self.argv(*arguments)
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False, timeout=2 * DEADLINE_S)

    def start(self, *arguments: str | Path) -> Command:
        """A command that goes on while the test does."""
        command = Command(self.argv(*arguments), self.env)
        self._commands.append(command)
        return command
