"""Guards that outlive all of our processes: copies of their descriptors, here and in systemd's descriptor store.

While any copy of a fanotify group is open, the kernel holds whoever waits, even with every keeper dead. A guard is three
descriptors, which come one by one as ``NAME.group``, ``NAME.listener`` and ``NAME.ledger``; sd_notify(3), ``FDSTORE=1``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket

from active_restore.errors import CapabilityMissing
from active_restore.intercept.keepers import Keepers
from active_restore.intercept.ledger import Ledger
from active_restore.linux.notify import GUARD_PARTS, forget_descriptors, listen_descriptors, store_descriptor
from active_restore.linux.process import is_alive

_log = logging.getLogger(__name__)
_STDERR = 2


class Store:
    """Our copies, by the name of the restore's directory and the part."""

    def __init__(self) -> None:
        self._guards: dict[str, dict[str, int]] = {}
        for label, fd in listen_descriptors():
            self._keep(label, fd)

    def put(self, label: str, fd: int) -> None:
        """Keep a copy that an agent has sent, and let systemd keep another."""
        store_descriptor(os.environ.get("NOTIFY_SOCKET", ""), label, fd)
        self._keep(label, fd)

    def _keep(self, label: str, fd: int) -> None:
        name, _, part = label.rpartition(".")
        before = self._guards.setdefault(name, {}).pop(part, -1)
        if before >= 0:
            os.close(before)
        self._guards[name][part] = fd

    def names(self) -> list[str]:
        """The restores of which there are copies."""
        return list(self._guards)

    def forget(self, name: str) -> None:
        """The restore is over: with the last copy the group is gone."""
        for part, fd in self._guards.pop(name, {}).items():
            os.close(fd)
            forget_descriptors(f"{name}.{part}")

    def revive(self, name: str, marker_prefix: bytes) -> None:
        """Start a keeper where all of a guard are dead: it takes over what they had not answered."""
        guard = self._guards.get(name, {})
        if set(guard) != set(GUARD_PARTS):
            return
        with contextlib.closing(Ledger(os.dup(guard["ledger"]))) as ledger:
            if ledger.disarmed or is_alive(ledger.keeper) or is_alive(ledger.standby):
                return
            with socket.socket(fileno=os.dup(guard["listener"])) as listener:
                # What it complains of goes where we do: a log would be a file that nobody may open now.
                crew = Keepers(guard["group"], ledger, listener, marker_prefix, ledger.mask, _STDERR)
                try:
                    crew.start(ledger.keeper)
                except (CapabilityMissing, OSError) as error:
                    _log.error("a new keeper cannot be started: %s", error)
                else:
                    _log.warning("every keeper of a guard was dead; a new one holds its tasks")
