"""Relax mode as systemd starts it: ``Relaxed`` hears what it says."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from active_restore.predict import carried, order
from active_restore.service.hearing import Hearing
from tests.kernel.waiting import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.rig import Rig


class Relaxed:
    """``start`` and ``stop``; ``directories`` are watched with the lines of TOML that ``start`` is given."""

    def __init__(self, rig: Rig, place: Path) -> None:
        self._rig = rig
        self._hearing = Hearing(place / "init" / "notify")
        self._log = place / "relax.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *directories: Path, settings: str = "") -> int:
        """Its process id, when it is ready."""
        names = ", ".join(f"'{directory}'" for directory in directories)
        (self._rig.place / "agent.toml").write_text(f"[relax]\ndirectories = [{names}]\n{settings}\n")
        env = {**self._rig.env, "NOTIFY_SOCKET": self._hearing.address}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._rig.argv("relax"), env=env, stdout=log, stderr=log)
        self.until("READY", "1")
        return self._process.pid

    def until(self, word: str, value: str) -> None:
        """Until it says this."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for message in self._hearing.messages():
                if message.words.get(word) == value:
                    return
            assert time.monotonic() < deadline, f"{word}={value} did not come: {self.log}"
            select.select([self._hearing.sock], [], [], 0.1)

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    def hurry(self) -> None:
        """As ``systemctl reload``."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def catch_up(self) -> None:
        """Until it has heard of all that has happened, and saved it."""
        list(self._hearing.messages())
        self.hurry()
        # One may have been on its way.
        for _ in range(2):
            self.until("WATCHDOG", "1")
            self.hurry()

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def stop(self) -> int:
        """As ``systemctl stop``; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(DEADLINE_S)

    def close(self) -> None:
        """End it, whatever it does."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(DEADLINE_S)
        self._hearing.close()


@pytest.fixture
def relaxed(rig: Rig, tmp_path: Path) -> Iterator[Relaxed]:
    """The service of normal times."""
    relaxed = Relaxed(rig, tmp_path)
    yield relaxed
    relaxed.close()


def recorded(tree: Path) -> list[str]:
    """What the order in this tree says, empty where there is none."""
    path = tree / os.fsdecode(order.FILE_NAME)
    return [os.fsdecode(touch.path) for touch in carried.load(str(path)).touches] if path.exists() else []
