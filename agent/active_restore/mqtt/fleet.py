"""What is known of every machine that publishes: the newest of each kind, from whoever may write to the broker.

Not guaranteed: that it is true. Payloads that do not fit the schema are counted and dropped; text in the others is untrusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from active_restore.mqtt import payloads
from active_restore.mqtt.topics import KINDS, parse

if TYPE_CHECKING:
    from active_restore.mqtt.payloads import Faults, Payload, Progress, Report, State

_MAX_MACHINES = 20_000
_MAX_BYTES = 256 << 10
_WORKING = ("planning", "laying", "restoring", "verifying")


@dataclass(slots=True)
class Machine:
    """One machine. ``seen_at`` is when something came that was not retained, by the listener's clock; ``None`` before that."""

    node: str
    state: State | None = None
    progress: Progress | None = None
    faults: Faults | None = None
    report: Report | None = None
    seen_at: float | None = None

    @property
    def phase(self) -> str:
        """The newest that is known; ``lost`` where the broker says so."""
        if self.state is not None and not self.state.online:
            return self.state.phase
        return self.progress.phase if self.progress is not None else self.state.phase if self.state is not None else "unknown"

    @property
    def is_working(self) -> bool:
        """Whether an agent is at it now."""
        return self.phase in _WORKING

    @property
    def waiting(self) -> int:
        """How many tasks wait for a file."""
        return self.progress.waiting if self.progress is not None and self.is_working else 0

    @property
    def rate_bytes_per_s(self) -> float:
        """How fast it is now."""
        return self.progress.rate_bytes_per_s if self.progress is not None and self.is_working else 0.0


class Change(NamedTuple):
    """A payload that came. ``old_phase`` is the machine's phase before it."""

    machine: Machine
    kind: str
    payload: Payload
    old_phase: str


class Fleet:
    """All machines under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._machines: dict[str, Machine] = {}
        self.dropped = 0
        """Messages that were none of ours, or one machine too many."""

    def take(self, topic: str, raw: bytes, now: float, *, retained: bool) -> Change | None:
        """Take one message. ``None`` where it says nothing that can be understood."""
        place = parse(self._prefix, topic)
        if place is None or place[1] not in KINDS:
            return None
        node, kind = place
        if not raw:
            self._forget(node, kind)
            return None
        if len(raw) > _MAX_BYTES or (node not in self._machines and len(self._machines) >= _MAX_MACHINES):
            self.dropped += 1
            return None
        try:
            payload = payloads.decode(kind, raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.dropped += 1
            return None
        machine = self._machines.setdefault(node, Machine(node))
        old_phase = machine.phase
        setattr(machine, kind, payload)
        if not retained:
            machine.seen_at = now
        return Change(machine, kind, payload, old_phase)

    def machines(self) -> list[Machine]:
        """All, those first who need somebody: lost ones, waiting tasks, then who works, then who has ended."""
        return sorted(self._machines.values(), key=_urgency)

    def _forget(self, node: str, kind: str) -> None:
        """An empty retained message takes the one before it away."""
        machine = self._machines.get(node)
        if machine is not None:
            setattr(machine, kind, None)
            if machine.state is None and machine.progress is None and machine.report is None:
                del self._machines[node]


def _urgency(machine: Machine) -> tuple[int, float, str]:
    if machine.phase in ("lost", "failed"):
        return 0, 0.0, machine.node
    if machine.waiting and machine.progress is not None:
        return 1, -float(machine.waiting), machine.node
    if machine.is_working:
        return 2, machine.progress.percent if machine.progress is not None else 0.0, machine.node
    return 3, 0.0, machine.node
