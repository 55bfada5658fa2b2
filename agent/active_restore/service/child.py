"""One restore and the process that goes on with it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from active_restore.errors import Busy, Interrupted, NotRunning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from active_restore.control.registry import Known

_log = logging.getLogger(__name__)
_PARTLY = 3
# Ours, not seconds: where the whole machine stands still, so do our looks at it.
_SILENT_LOOKS = 60
_STARTING_LOOKS = 300
_LAST_PAUSE_S = 300.0
_LEFT_ALONE = {
    0: "it is done",
    _PARTLY: "some files were refused and stay so; it is tried again when the service starts",
    Interrupted.exit_code: "it was stopped; it goes on when the service starts again, or by: active-restore resume",
}


class Child:
    """``look`` once a second. ``guarded`` says whether its placeholders are safe, or why one need not wait for that."""

    def __init__(self, restore: Known, environment: Mapping[str, str], retry_s: float) -> None:
        self.restore = restore
        self.guarded = False
        self.left_alone = False
        self._environment = environment
        self._retry_s = retry_s
        self._pause_s = retry_s
        self._process: subprocess.Popen[bytes] | None = None
        self._due = 0.0
        self._silent = 0
        self._ready = False

    @property
    def pid(self) -> int:
        """Of its process; 0 where there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def due(self) -> bool:
        """Whether its process should be started now."""
        return self._process is None and not self.left_alone and time.monotonic() >= self._due

    def start(self) -> None:
        """Go on with the restore."""
        target = self.restore.target
        words = ["resume", "--wait-for-source", "--supervised", "--", target]
        _log.info("going on with %s", target)
        self._silent = -_STARTING_LOOKS
        self._ready = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "active_restore", *words],
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            cwd="/",
        )

    def hear(self, words: Mapping[str, str]) -> None:
        """It said something: it is alive."""
        self._silent = 0
        if words.get("READY") == "1":
            self.guarded = self._ready = True
            self._pause_s = self._retry_s

    def look(self) -> None:
        """Reap it where it has ended, kill it where it hangs."""
        if self._process is None:
            return
        code = self._process.poll()
        if code is not None:
            self._process = None
            self._ended(code)
            return
        self._silent += 1
        if self._silent > _SILENT_LOOKS:
            _log.error("the agent of %s has said nothing for a minute: it is killed and replaced", self.restore.target)
            self._process.kill()

    def _ended(self, code: int) -> None:
        target = self.restore.target
        if code in _LEFT_ALONE:
            _log.info("%s: %s", target, _LEFT_ALONE[code])
            self.guarded = self.left_alone = True
            return
        # Whoever waits for the guard has waited long enough: it failed, and said why.
        self.guarded = True
        if code in (Busy.exit_code, NotRunning.exit_code):
            self._due = time.monotonic() + self._retry_s
            return
        what = f"was killed by signal {-code}" if code < 0 else f"failed (exit code {code})"
        if code < 0 and self._ready:
            _log.error("the agent of %s %s and is replaced", target, what)
            return
        self._due = time.monotonic() + self._pause_s
        _log.error("the agent of %s %s, again in %.0f s", target, what, self._pause_s)
        self._pause_s = min(2 * self._pause_s, max(_LAST_PAUSE_S, self._retry_s))

    def stop(self, number: int) -> None:
        """Ask it to end."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within this time."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True
