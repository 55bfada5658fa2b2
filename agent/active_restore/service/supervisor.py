"""The loop of the service: look, hear, start what is missing, tell systemd."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from active_restore.config import service_socket
from active_restore.control import registry
from active_restore.errors import ActiveRestoreError
from active_restore.linux.locks import is_locked
from active_restore.linux.notify import notify
from active_restore.marker import MARKER, marker_prefix
from active_restore.restore.job import lock_file, stopped_file, sweep
from active_restore.restore.target import need_root
from active_restore.service.child import Child
from active_restore.service.hearing import Hearing
from active_restore.service.stored import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from active_restore.control.registry import Known
    from active_restore.service.hearing import Message
    from active_restore.settings.tables import ServiceTable

_log = logging.getLogger(__name__)
_LOOK_MS = 1000
_STOP_SECONDS = 60.0
_DYING_SECONDS = 3.0
_NOT_VISIBLE_YET = ("planning", "laying")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """``run`` until a signal. ``environment`` gives the variables for the agent of a target; ``each_look`` is called once a
    second with the restores that are known.
    """

    def __init__(
        self,
        settings: ServiceTable,
        environment: Callable[[str], Mapping[str, str]],
        each_look: Callable[[list[Known]], None],
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._each_look = each_look
        self._children: dict[str, Child] = {}
        self._complained: set[str] = set()
        self._stopping = False
        self._ready = False
        self._began = time.monotonic()

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP; then end our children (keepers stay). Raises ``CapabilityMissing``."""
        need_root()
        sweep()
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        # A child that ends wakes us.
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._hearing = Hearing(service_socket())
        self._store = Store()
        try:
            self._serve(wake_read)
        finally:
            notify("STOPPING=1")
            self._end()
            self._hearing.close()
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wake_read)
            os.close(wake_write)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _serve(self, wake: int) -> None:
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self._hearing.sock, select.POLLIN)
        # What was interrupted before the service started goes on, whoever interrupted it.
        unguarded = set(self._look(also_stopped=True))
        deadline = time.monotonic() + self._settings.target_wait
        looked = time.monotonic()
        while not self._stopping:
            poll.poll(_LOOK_MS)
            self._hear()
            if _drain(wake) or time.monotonic() - looked >= _LOOK_MS / 1000:
                looked = time.monotonic()
                self._look(also_stopped=not self._ready)
                notify("WATCHDOG=1")
            if not self._ready:
                unguarded = {name for name in unguarded if self._is_unguarded(name, deadline)}
                if not unguarded:
                    self._ready = True
                    notify("READY=1")
                    _log.info("ready: every placeholder that was found is guarded")

    def _is_unguarded(self, name: str, deadline: float) -> bool:
        """Whether the boot must wait for this restore."""
        child = self._children.get(name)
        if child is not None:
            return not child.guarded
        if is_locked(lock_file(name)):
            # Another agent serves it; or it was just killed, and a child that it was about to start still holds its lock.
            return time.monotonic() < self._began + _DYING_SECONDS
        # Its file system is not mounted yet.
        return time.monotonic() < deadline and self._known(name) is not None

    def _look(self, *, also_stopped: bool) -> list[str]:
        """Start what is missing; the restores that have placeholders which only a child of ours can guard."""
        for child in self._children.values():
            child.look()
        names = registry.names()
        found = [restore for name in names if (restore := self._known(name)) is not None]
        self._forget(names)
        waiting = []
        for restore in found:
            if not is_locked(lock_file(restore.name)):
                self._store.revive(restore.name, marker_prefix(restore.restore_id))
            known = self._children.get(restore.name)
            is_ours = known is not None or self._is_ours(restore, also_stopped=also_stopped)
            if restore.phase not in _NOT_VISIBLE_YET and (is_ours or is_locked(lock_file(restore.name))):
                waiting.append(restore.name)
            if not is_ours:
                continue
            if known is not None or self._is_there(restore):
                self._go_on(restore, known)
        self._each_look(found)
        running = sum(1 for child in self._children.values() if child.pid)
        notify(f"STATUS={len(found)} unfinished restores, {running} of them served by this service")
        return waiting

    def _is_ours(self, restore: Known, *, also_stopped: bool) -> bool:
        """Not while another agent works on it, and not while its user wants it to stand still."""
        if is_locked(lock_file(restore.name)):
            return False
        return also_stopped or not stopped_file(restore.name).exists()

    def _is_there(self, restore: Known) -> bool:
        """Whether the target is mounted: its root remembers the restore."""
        if restore.phase in ("planning", "done"):
            return os.path.isdir(restore.target)
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(os.getxattr(restore.target, MARKER))
            return bool(record["restore_id"] == restore.restore_id)
        self._complain(restore.name, f"{restore.target} is not mounted (or is another directory now): its restore waits")
        return False

    def _go_on(self, restore: Known, child: Child | None) -> None:
        if child is None:
            environment = {**self._environment(restore.target), "NOTIFY_SOCKET": self._hearing.address}
            child = self._children[restore.name] = Child(restore, environment, self._settings.retry)
        if child.due:
            child.start()

    def _known(self, name: str) -> Known | None:
        """A restore whose state is damaged does not stand in the way of others."""
        try:
            return registry.lookup(name)
        except ActiveRestoreError as error:
            self._complain(name, f"{error} ({error.hint})")
            return None

    def _complain(self, name: str, text: str) -> None:
        if name not in self._complained:
            self._complained.add(name)
            _log.error("%s", text)

    def _forget(self, names: list[str]) -> None:
        """Restores that are over."""
        over = [name for name, child in self._children.items() if name not in names and not child.pid]
        for name in over:
            del self._children[name]
        for name in self._store.names():
            if name not in names and name not in self._children:
                self._store.forget(name)

    def _hear(self) -> None:
        for message in self._hearing.messages():
            child = next((child for child in self._children.values() if child.pid == message.pid), None)
            if child is not None:
                child.hear(message.words)
            self._take(message)

    def _take(self, message: Message) -> None:
        """Descriptors of a guard are kept, also where a user's command is its agent; others are closed."""
        label = message.words.get("FDNAME", "")
        ours = label.partition(".")[0] in registry.names()
        for fd in message.fds:
            if ours and message.words.get("FDSTORE") == "1":
                self._store.put(label, fd)
            else:
                os.close(fd)

    def _end(self) -> None:
        """End our children in good order; tasks wait for the next service."""
        for child in self._children.values():
            child.stop(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children.values():
            if not child.wait(deadline - time.monotonic()):
                child.stop(signal.SIGKILL)
                child.wait(_STOP_SECONDS)


def _drain(fd: int) -> bool:
    """Whether a signal has come since the last time."""
    try:
        return bool(os.read(fd, 4096))
    except BlockingIOError:
        return False
