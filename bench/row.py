"""A row of the result: two figures of one run, their ratio, and whether the goal of the design holds."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

Measure = Literal["peer/ours", "ours/peer", "ours", "ours-peer"]


class Goal(NamedTuple):
    """What should hold: ``measure`` at least or at most ``bound`` (in the row's unit for ``ours`` and ``ours-peer``)."""

    measure: Measure
    relation: Literal[">=", "<="]
    bound: float

    def text(self, unit: str) -> str:
        """Like ``peer/ours >= 1.5``."""
        suffix = f" {unit}" if self.measure in ("ours", "ours-peer") else ""
        return f"{self.measure} {self.relation} {self.bound:g}{suffix}"

    def holds(self, ours: float, peer: float) -> bool:
        """Whether it does."""
        value = {"peer/ours": peer / ours, "ours/peer": ours / peer, "ours": ours, "ours-peer": ours - peer}[self.measure]
        return value >= self.bound if self.relation == ">=" else value <= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """``ratio`` is ours/peer where the goal says so, else peer/ours. ``goal`` is empty where the design names none."""

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    goal: str
    holds: bool | None
    unit: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def row(name: str, unit: str, ours: Sequence[float], peer: tuple[str, Sequence[float]], goal: Goal | None = None) -> Row:
    """A row of the medians of the rounds."""
    peer_name, theirs = peer
    mine, other = statistics.median(ours), statistics.median(theirs)
    inverse = goal is not None and goal.measure == "ours/peer"
    ratio = mine / other if inverse else other / mine
    return Row(
        name=name,
        ours=_rounded(mine),
        peer=_rounded(other),
        peer_name=peer_name,
        ratio=round(ratio, 3),
        goal=goal.text(unit) if goal else "",
        holds=goal.holds(mine, other) if goal else None,
        unit=unit,
    )


def _rounded(value: float) -> float:
    """Four digits are more than such a figure knows."""
    return float(f"{value:.4g}")


def percentile(values: Sequence[float], share: int) -> float:
    """The value that ``share`` per cent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]
