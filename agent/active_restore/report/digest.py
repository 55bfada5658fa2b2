"""The digest of a logbook: what happened when, in seconds since the first agent began."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

LANES = ("demand", "predicted", "background")
_LONGEST = 25


@dataclass(slots=True)
class Sample:
    """The state at one moment. ``lanes`` are bytes so far, ``waiting`` how many tasks waited."""

    at_s: float
    lanes: dict[str, int]
    rate_bytes_per_s: float
    waiting: int
    throttle: str


@dataclass(slots=True)
class Wait:
    """A task that waited; ``at_s`` is when it went on."""

    at_s: float
    path: str
    comm: str
    unit: str
    waited_ms: float


@dataclass(slots=True)
class Unit:
    """What one systemd unit (or cgroup, or program) waited for. It was usable at ``last_s``: it has not waited since."""

    name: str
    faults: int = 0
    waited_ms: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0


@dataclass(slots=True)
class Ranges:
    """Files by range: how many at most at a time, their bytes, and the bytes that came because tasks wanted them."""

    files: int = 0
    bytes: int = 0
    bytes_wanted: int = 0


@dataclass(slots=True)
class Report:
    """Times are seconds since ``begun_s`` (seconds since the epoch); ``None`` where it has not happened."""

    target: str = ""
    source: str = ""
    snapshot: str = ""
    begun_s: float = 0.0
    agents: int = 0
    ready_s: float | None = None
    done_s: float | None = None
    files: int = 0
    bytes: int = 0
    faults: int = 0
    refused: int = 0
    left_out: int = 0
    samples: list[Sample] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    units: dict[str, Unit] = field(default_factory=dict)
    predictions: dict[str, dict[str, int]] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=Ranges)
    notes: list[tuple[float, str]] = field(default_factory=list)

    def longest(self) -> list[Wait]:
        """The longest waits."""
        return sorted(self.waits, key=lambda wait: -wait.waited_ms)[:_LONGEST]


def digest(lines: Iterable[bytes]) -> Report:
    """The report of a logbook; lines that are broken (the machine died while it was written) are left out."""
    report = Report()
    for line in lines:
        try:
            entry = json.loads(line)
            _take(report, entry, float(entry["t"]))
        except (ValueError, KeyError, TypeError):
            continue
    return report


def _take(report: Report, entry: dict[str, Any], t: float) -> None:
    if not report.agents:
        report.begun_s = t
    at_s = max(t - report.begun_s, 0.0)
    if entry["event"] in ("refused", "notice"):
        _note(report, entry, at_s)
        return
    match entry["event"]:
        case "begun":
            report.agents += 1
        case "planned":
            report.files, report.bytes = int(entry["files"]), int(entry["bytes"])
        case "ready":
            report.ready_s = at_s if report.ready_s is None else report.ready_s
        case "progress":
            _sample(report, entry, at_s)
        case "fault":
            who = str(entry["comm"]), str(entry["unit"])
            _wait(report, Wait(at_s, str(entry["path"]), *who, float(entry["waited_ms"])))
        case "left_out":
            report.left_out += int(entry["events"])
        case "done":
            report.done_s = at_s
            report.refused, report.faults = int(entry["refused"]), max(report.faults, int(entry["faults"]))


def _note(report: Report, entry: dict[str, Any], at_s: float) -> None:
    text = f"refused: {entry['path']}: {entry['detail']}" if entry["event"] == "refused" else str(entry["text"])
    report.notes.append((at_s, text))


def _sample(report: Report, entry: dict[str, Any], at_s: float) -> None:
    report.target, report.source, report.snapshot = entry["target"], entry["source"], entry["snapshot"]
    report.files, report.bytes = entry["files_total"], entry["bytes_total"]
    report.faults, report.refused = entry["faults"], entry["refused"]
    report.predictions = entry["predictions"]
    lanes = {lane: entry["lanes"].get(lane, 0) for lane in LANES}
    report.samples.append(Sample(at_s, lanes, entry["rate_bytes_per_s"], entry["waiting"], entry["throttle"]))
    # Last: older agents did not write them.
    now, most = entry["ranges"], report.ranges
    most.files, most.bytes = max(most.files, now["files"]), max(most.bytes, now["bytes_total"])
    most.bytes_wanted = max(most.bytes_wanted, now["bytes_wanted"])


def _wait(report: Report, wait: Wait) -> None:
    report.waits.append(wait)
    name = wait.unit or wait.comm
    unit = report.units.setdefault(name, Unit(name, first_s=max(wait.at_s - wait.waited_ms / 1000, 0.0)))
    unit.faults += 1
    unit.waited_ms += wait.waited_ms
    unit.last_s = wait.at_s
