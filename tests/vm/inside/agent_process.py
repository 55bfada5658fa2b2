"""Agents in processes of their own, one after the other, that can be told where to die.

Arguments: root, run directory. Each line of standard input begins one: number of placeholders, "arm" or "adopt", where to
die (a stage of ``_STAGES`` or "never"), and after how many files. It prints "ready" and its process id, and when it has
ended "ended" and how; "finish" lets it end by itself. File n holds its number, many times.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from active_restore.marker import MARKER
from active_restore.model import Gate
from tests.vm.inside.territory import Guarded, until

_STAGES = ("fault", "written", "unmarked", "released")


def content(row: int) -> bytes:
    """What file ``row`` holds."""
    return f"{row}\n".encode() * 5000


class DyingAgent(Guarded):
    """Fills every fault, and dies in the middle of one."""

    stage, after = "never", 0

    def _reach(self, stage: str) -> None:
        if stage == self.stage:
            self.after -= 1
            if self.after < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def fill(self, row: int) -> None:
        """As the engine does it, with a chance to die at each step."""
        self._reach("fault")
        path = self.root / f"{row}"
        fd = os.open(path.name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.interceptor.passage())
        half = len(content(row)) // 2
        os.pwrite(fd, content(row)[:half], 0)
        self._reach("written")
        os.pwrite(fd, content(row)[half:], half)
        os.fdatasync(fd)
        os.close(fd)
        # Two faults of one row at once: the other one may have been faster.
        with contextlib.suppress(OSError):
            os.removexattr(path, MARKER)
        self._reach("unmarked")
        self.interceptor.release(row, Gate.ALL, self.of(row))
        self._reach("released")


def live(root: str, run_dir: str, placeholders: str, start: str, stage: str, after: str) -> None:
    """Serve until told to finish."""
    agent = DyingAgent(Path(root), Path(run_dir))
    agent.stage, agent.after = stage, int(after)
    rows = range(1, int(placeholders) + 1)
    agent.at_once = set(rows)
    if start == "arm":
        agent.interceptor.arm(agent.territory)
        for row in rows:
            agent.lay(f"{row}", content(row))
    else:
        assert agent.interceptor.adopt(agent.territory)
    print("ready", os.getpid(), flush=True)
    agent.serve()
    os.read(0, 100)
    until(lambda: not agent.waiting(), "the end of all waits")
    agent.interceptor.disarm()
    agent.join()


def main() -> None:
    """An agent is a fork of this process: to start a Python takes seconds on an emulated processor."""
    while words := os.read(0, 100).decode().split():
        pid = os.fork()
        if not pid:
            live(*sys.argv[1:], *words)
            os._exit(0)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
