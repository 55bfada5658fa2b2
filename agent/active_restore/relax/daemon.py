"""The loop of relax mode: hear what is opened and changed, save it now and then, answer who asks, tell systemd."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from active_restore.linux import inotify
from active_restore.linux.notify import notify
from active_restore.relax.asking import Answer, Desk, unwatched
from active_restore.relax.watched import Watched
from active_restore.restore.target import need_root

if TYPE_CHECKING:
    from active_restore.relax.asking import Request
    from active_restore.settings.tables import RelaxTable

# A third of what systemd waits for (WatchdogSec).
_LOOK_S = 10.0
_REST_S = 1.0
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
        desk = Desk(self._answer)
        try:
            self._serve(wake_read, unmounts, desk)
        finally:
            notify("STOPPING=1")
            desk.close()
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

    def _serve(self, wake: int, unmounts: int, desk: Desk) -> None:
        ready = False
        while not self._stopping:
            hurried, self._hurried = self._hurried, False
            for watched in self._watched:
                watched.look(now=hurried)
            if not ready:
                ready = True
                notify("READY=1")
            self._tell()
            self._hear(wake, unmounts, desk)

    def _tell(self) -> None:
        there = sum(1 for watched in self._watched if watched.recorder is not None)
        notify(f"WATCHDOG=1\nSTATUS={there} of {len(self._watched)} directories are watched")

    def _hear(self, wake: int, unmounts: int, desk: Desk) -> None:
        """Until it is time to look again, or to tell something new."""
        until = min([time.monotonic() + _LOOK_S, *(watched.due for watched in self._watched)])
        rested = 0.0
        while not (self._stopping or self._hurried) and (left := until - time.monotonic()) > 0:
            poll = select.poll()
            for fd in (wake, unmounts, desk.sock.fileno()):
                poll.register(fd, select.POLLIN)
            does = {one.recorder.fd: one.drain for one in self._watched if one.recorder is not None}
            if time.monotonic() >= rested:
                does.update({one.changes.fd: one.changes.drain for one in self._watched if one.changes is not None})
            else:
                left = min(left, rested - time.monotonic())
            for fd in does:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(max(left, 0.0) * 1000):
                if fd in does:
                    does[fd]()
                elif fd == unmounts:
                    self._unmounted(unmounts)
                    until = 0.0
                elif fd == wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
                else:
                    desk.serve()
            # The kernel keeps events of one file together meanwhile: who writes all the time costs us no more than that.
            if time.monotonic() >= rested:
                rested = time.monotonic() + _REST_S

    def _answer(self, request: Request) -> Answer:
        """Of the innermost directory that we watch and that holds what is asked for."""
        knowing = [one.changes for one in self._watched if one.changes is not None and one.changes.knows(request.directory)]
        if not knowing:
            raise unwatched(os.fsdecode(request.directory))
        changes = max(knowing, key=lambda one: len(one.path))
        if request.want == "token":
            return Answer(token=changes.token())
        found = changes.since(request.since, request.directory)
        return Answer(paths=found.paths, linked=found.linked)

    def _unmounted(self, unmounts: int) -> None:
        """What was there is gone, and our marks with it, even if the same comes back at once."""
        gone = set(inotify.numbers(unmounts))
        for watched in self._watched:
            if watched.watch in gone:
                watched.end("it was unmounted, moved or deleted")
