"""A service under test, and the part of systemd that it talks to."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from active_restore.service.hearing import Hearing
from tests.kernel.waiting import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kernel.rig import Rig

# Passes descriptors on as systemd does: from number 3, with the process id of the command itself.
_WITH_DESCRIPTORS = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
"""


class Init:
    """What systemd does for the service: starts it, hears it, keeps its descriptors."""

    def __init__(self, place: Path, rig: Rig) -> None:
        self._rig = rig
        self._hearing = Hearing(place / "init" / "notify")
        self.kept: dict[str, int] = {}
        self.words: list[tuple[str, str]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.log = place / "agent.log"

    def start(self) -> int:
        """Start the service; its process id."""
        labels, copies = list(self.kept), list(self.kept.values())
        # Numbers from 3 on, in order: what lies there in this process is moved away for the child only.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for fd in copies]
        moves = "".join(f"os.dup2({number}, {3 + at});" for at, number in enumerate(high))
        env = {**self._rig.env, "NOTIFY_SOCKET": self._hearing.address}
        if copies:
            env |= {"LISTEN_FDS": str(len(copies)), "LISTEN_FDNAMES": ":".join(labels)}
        argv = [sys.executable, "-c", f"import os\n{moves}\n{_WITH_DESCRIPTORS}", *self._rig.argv("agent")]
        self.words.clear()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, pass_fds=high)
        for fd in high:
            os.close(fd)
        return self.process.pid

    def until(self, word: str, value: str = "1") -> None:
        """Until the service has said this."""
        self.wait(lambda: (word, value) in self.words, f"{word}={value}")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Hear the service until a condition holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come: {self.log.read_text()}"
            select.select([self._hearing.sock], [], [], 0.1)
            self.hear()

    def hear(self) -> None:
        """Take what has come."""
        for message in self._hearing.messages():
            self.words += message.words.items()
            label = message.words.get("FDNAME", "")
            for fd in message.fds:
                old = self.kept.pop(label, None)
                if old is not None:
                    os.close(old)
                self.kept[label] = fd
            if "FDSTOREREMOVE" in message.words and label in self.kept:
                os.close(self.kept.pop(label))

    def kill(self) -> None:
        """SIGKILL to the service alone."""
        assert self.process is not None
        self.hear()
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def stop(self) -> int:
        """As systemctl stop with KillMode=process; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE_S)
        self.hear()
        return code

    def close(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE_S)
        for fd in self.kept.values():
            os.close(fd)
        self._hearing.close()


@pytest.fixture
def init(held_rig: Rig, tmp_path: Path) -> Iterator[Init]:
    """The service manager of a rig whose background does nothing by itself."""
    init = Init(tmp_path, held_rig)
    yield init
    init.close()
