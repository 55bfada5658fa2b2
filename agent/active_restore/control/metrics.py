"""Restores in the text format of Prometheus. Names are an interface; ``docs/metrics.md`` lists them.

Source: the Prometheus documentation, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, get_args

import active_restore
from active_restore.control.client import ControlClient
from active_restore.control.names import plain
from active_restore.errors import ActiveRestoreError
from active_restore.restore.progress import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from active_restore.control.registry import Known
    from active_restore.restore.progress import Status


class Metric(NamedTuple):
    """One name. ``values`` gives its samples for a status: extra labels and a number each."""

    name: str
    kind: str
    text: str
    values: Callable[[Status], Iterable[tuple[dict[str, str], float]]]


def _one(pick: Callable[[Status], float | None]) -> Callable[[Status], Iterable[tuple[dict[str, str], float]]]:
    """A metric with one sample, or none where there is nothing to say."""
    return lambda status: [({}, value)] if (value := pick(status)) is not None else []


def _longest_s(status: Status) -> float:
    return max((wait.waited_ms / 1000 for wait in status.waiting), default=0.0)


_away = _one(lambda status: status.source_unreachable_s)

METRICS = (
    Metric("phase", "gauge", "1 for the phase that the restore is in, 0 for the others.", lambda status: _phases(status)),
    Metric("files", "gauge", "Files with content to restore.", _one(lambda status: status.files_total)),
    Metric("files_done", "gauge", "Files that are restored and durable.", _one(lambda status: status.files_done)),
    Metric("bytes", "gauge", "Bytes of content to restore.", _one(lambda status: status.bytes_total)),
    Metric("bytes_done", "gauge", "Bytes of content that are restored and durable.", _one(lambda status: status.bytes_done)),
    Metric("bytes_underway", "gauge", "Bytes that are written, of files that are not done.", _one(lambda s: s.bytes_underway)),
    Metric("refused_files", "gauge", "Files that cannot be restored.", _one(lambda status: status.refused)),
    Metric("faults_total", "counter", "Tasks that waited for a file and went on.", _one(lambda status: status.faults)),
    Metric("waiting_tasks", "gauge", "Tasks that wait for a file now.", _one(lambda status: len(status.waiting))),
    Metric("waiting_longest_seconds", "gauge", "How long the first of them has waited.", _one(_longest_s)),
    Metric("rate_bytes_per_second", "gauge", "How fast content comes.", _one(lambda status: status.rate_bytes_per_s)),
    Metric("limit_bytes_per_second", "gauge", "Limit of the background, 0: none.", _one(lambda s: s.limit_bytes_per_s)),
    Metric("paused", "gauge", "1 while the background is paused.", _one(lambda status: float(status.paused))),
    Metric("source_unreachable_seconds", "gauge", "How long the source has been away; 0: it is there.", _away),
    Metric("running_seconds", "gauge", "How long this agent has been running.", _one(lambda status: status.seconds)),
    Metric("eta_seconds", "gauge", "Time left; absent while it is not known.", _one(lambda status: status.eta_s)),
    Metric("lane_files_total", "counter", "Files that came by each lane.", lambda s: _lanes(s, "files")),
    Metric("range_files", "gauge", "Files by range that are not finished.", _one(lambda s: s.ranges.files)),
    Metric("range_bytes_present", "gauge", "Bytes of these that are there.", _one(lambda s: s.ranges.bytes_present)),
    Metric("range_bytes_wanted_total", "counter", "Bytes by range that tasks wanted.", _one(lambda s: s.ranges.bytes_wanted)),
    Metric("lane_bytes_total", "counter", "Bytes that came by each lane.", lambda s: _lanes(s, "bytes")),
)  # fmt: skip


def _phases(status: Status) -> Iterable[tuple[dict[str, str], float]]:
    return [({"phase": phase}, float(phase == status.phase)) for phase in get_args(Phase)]


def _lanes(status: Status, unit: str) -> Iterable[tuple[dict[str, str], float]]:
    return [({"lane": name}, float(getattr(lane, unit))) for name, lane in status.lanes.items()]


def collect(restores: Sequence[Known]) -> list[tuple[Known, Status | None]]:
    """Each restore with its status, ``None`` where no agent answers."""
    found: list[tuple[Known, Status | None]] = []
    for restore in restores:
        try:
            with ControlClient(restore) as client:
                found.append((restore, client.status()))
        except ActiveRestoreError:
            found.append((restore, None))
    return found


def text(seen: Sequence[tuple[Known, Status | None]]) -> str:
    """The whole page."""
    lines = _head("info", "gauge", "Always 1; the version of this program.")
    lines.append(_sample("info", {"version": active_restore.__version__}, 1))
    lines += _head("restores", "gauge", "Unfinished restores of this machine.")
    lines.append(_sample("restores", {}, len(seen)))
    lines += _head("agent_up", "gauge", "1 where an agent serves the restore.")
    lines += [_sample("agent_up", _labels(restore), float(status is not None)) for restore, status in seen]
    for metric in METRICS:
        lines += _head(metric.name, metric.kind, metric.text)
        for restore, status in seen:
            if status is not None:
                lines += [_sample(metric.name, _labels(restore) | more, value) for more, value in metric.values(status)]
    return "\n".join(lines) + "\n"


def _labels(restore: Known) -> dict[str, str]:
    return {"target": plain(restore.target)}


def _head(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP active_restore_{name} {what}", f"# TYPE active_restore_{name} {kind}"]


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"active_restore_{name}{{{inner}}} {value:.17g}" if inner else f"active_restore_{name} {value:.17g}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
