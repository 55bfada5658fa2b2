"""The loop of relax mode: hear what is opened, save it now and then, tell systemd."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from active_restore.linux import inotify
from active_restore.linux.notify import notify
from active_restore.relax.watched import Watched
from active_restore.restore.target import need_root

if TYPE_CHECKING:
    from active_restore.settings.tables import RelaxTable

# A third of what systemd waits for (WatchdogSec).
_LOOK_S = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Daemon:
    """``run`` until a signal."""

    def __init__(self, settings: RelaxTable) -> None:
        self._settings = settings
        self._watched: list[Watched] = []
        self._stopping = False
        self._hurried = False

    def run(self) -> None:
        """Watch the directories until SIGTERM or SIGINT; SIGHUP saves at once. Raises ``CapabilityMissing``."""
        need_root()
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._hurry)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        unmounts = inotify.init()
        self._watched = [Watched(directory, self._settings, unmounts) for directory in self._settings.directories]
        try:
            self._serve(wake_read, unmounts)
        finally:
            notify("STOPPING=1")
            for watched in self._watched:
                watched.close()
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            for fd in (wake_read, wake_write, unmounts):
                os.close(fd)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _hurry(self, _number: int, _frame: object) -> None:
        self._hurried = True

    def _serve(self, wake: int, unmounts: int) -> None:
        ready = False
        while not self._stopping:
            hurried, self._hurried = self._hurried, False
            for watched in self._watched:
                watched.look(now=hurried)
            if not ready:
                ready = True
                notify("READY=1")
            self._tell()
            self._hear(wake, unmounts)

    def _tell(self) -> None:
        there = sum(1 for watched in self._watched if watched.recorder is not None)
        notify(f"WATCHDOG=1\nSTATUS={there} of {len(self._watched)} directories are watched")

    def _hear(self, wake: int, unmounts: int) -> None:
        """Until it is time to look again."""
        until = min([time.monotonic() + _LOOK_S, *(watched.due for watched in self._watched)])
        while not (self._stopping or self._hurried) and (left := until - time.monotonic()) > 0:
            poll = select.poll()
            for fd in (wake, unmounts):
                poll.register(fd, select.POLLIN)
            groups = {one.recorder.fd: one for one in self._watched if one.recorder is not None}
            for fd in groups:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(left * 1000):
                if fd in groups:
                    groups[fd].drain()
                elif fd == unmounts:
                    self._unmounted(unmounts)
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)

    def _unmounted(self, unmounts: int) -> None:
        """What was there is gone, and our marks with it, even if the same comes back at once."""
        gone = set(inotify.numbers(unmounts))
        for watched in self._watched:
            if watched.watch in gone:
                watched.end("it was unmounted, moved or deleted")
