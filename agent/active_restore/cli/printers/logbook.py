"""The logbook of a restore: its events as JSON lines in a bounded file, for ``active-restore report``.

Each line has the event's name and ``t``, seconds since the epoch. The longer a restore takes, the rarer its progress is
noted; of very many faults only the long waits are.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

from active_restore.cli.printers.json_lines import dump, event_fields
from active_restore.predict.units import Units
from active_restore.restore.progress import FaultServed, Progress

if TYPE_CHECKING:
    from active_restore.restore.progress import Event

_SHORT_FAULTS = 5_000
_FAULTS = 20_000
_LONG_MS = 100.0
_OTHERS = 5_000
_RARER = 200


class LogbookPrinter:
    """Writes events to ``fd``, which it closes."""

    period_s = 60.0

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._units = Units()
        self._begun = time.monotonic()
        self._sampled = -math.inf
        self._faults = 0
        self._others = 0
        self._left_out = 0
        self._write({"event": "begun"})

    def show(self, event: Event) -> None:
        """Note it, or count it where there is no room."""
        if isinstance(event, Progress):
            self._sample(event)
        elif isinstance(event, FaultServed):
            self._fault(event)
        elif self._others < _OTHERS:
            self._others += 1
            self._write(event_fields(event))
        else:
            self._left_out += 1

    def _sample(self, event: Progress) -> None:
        # Not the clock of the lines: it may be set meanwhile.
        now = time.monotonic()
        if now - self._sampled < (now - self._begun) / _RARER:
            return
        self._sampled = now
        fields = event_fields(event)
        lanes = {name: lane["bytes"] for name, lane in fields["lanes"].items()}
        self._write({**fields, "lanes": lanes, "waiting": len(fields["waiting"]), "throttle": fields["throttle"]["reason"]})

    def _fault(self, event: FaultServed) -> None:
        self._faults += 1
        if self._faults > (_SHORT_FAULTS if event.waited_ms < _LONG_MS else _FAULTS):
            self._left_out += 1
            return
        fields = event_fields(event)
        unit = self._units.of(event.task.tgid or event.task.tid)
        self._write({**fields, "comm": fields["task"]["comm"], "unit": unit})

    def _write(self, fields: dict[str, Any]) -> None:
        os.write(self._fd, dump({"t": round(time.time(), 4), **fields}).encode() + b"\n")

    def tick(self) -> None:
        """Nothing changes by itself."""

    def close(self) -> None:
        """Say what is missing."""
        if self._left_out:
            self._write({"event": "left_out", "events": self._left_out})
        os.close(self._fd)
