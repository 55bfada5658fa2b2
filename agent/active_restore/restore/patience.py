"""Tasks that the policy of the machine does not serve at once: they wait until the background comes by, and promote nothing.

A crawler that opens everything would else fetch everything, before what services need.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.model import Fault


class Patience:
    """``on_fault`` is called by the interceptor's threads, ``look`` now and then by the thread that waits for the background.

    ``serve`` gets every fault that need not wait, or not any longer: ``is_missing`` tells.
    """

    def __init__(self, is_missing: Callable[[Fault], bool], serve: Callable[[Fault], None]) -> None:
        self._is_missing = is_missing
        self._serve = serve
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def on_fault(self, fault: Fault) -> None:
        """Keep it, or hand it on."""
        if fault.patient and self._is_missing(fault):
            with self._lock:
                self._waiting.append(fault)
            return
        self._serve(fault)

    def look(self) -> None:
        """Hand on those whose file is there by now, or cannot be had."""
        if not self._waiting:
            return
        with self._lock:
            faults, self._waiting = self._waiting, []
        for fault in faults:
            self.on_fault(fault)

    def waiting(self) -> list[Fault]:
        """Who waits."""
        with self._lock:
            return list(self._waiting)
