"""Metrics as Prometheus' own parser reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import active_restore
from active_restore.control import metrics
from active_restore.control.registry import Known
from active_restore.model import Task
from active_restore.restore.progress import LaneCount, RangeCount, Status, Waiting
from tests.cli.test_end_to_end import fill

if TYPE_CHECKING:
    from tests.kernel.rig import Rig

_DOCUMENT = Path(__file__).parents[2] / "docs/metrics.md"
STATUS = Status(
    "restoring", "/srv", "dir:/b", "latest", "fanotify", 12.5, 10, 1 << 60, 4, 1 << 59, 77, 1, 7, 1e6, None,
    paused=True, limit_bytes_per_s=5, lanes={"demand": LaneCount(3, 30)},
    waiting=(Waiting(b"a", Task(1, 1, "cat"), 1500.0), Waiting(b"b", Task(2, 2, "cat"), 20.0)),
    ranges=RangeCount("pre-content events", 2, 40, 30, 20),
)  # fmt: skip


def known(target: str) -> Known:
    return Known("0" * 16, "1f", "dir:/b", target, "latest", "restoring")


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type in ("gauge", "counter")
        found.update({(one.name, frozenset(one.labels.items())): one.value for one in family.samples})
    return found


def test_every_number_arrives() -> None:
    found = read(metrics.text([(known("/srv"), STATUS), (known("/other"), None)]))
    srv = ("target", "/srv")

    def value(name: str, *labels: tuple[str, str]) -> float:
        return found[f"active_restore_{name}", frozenset(labels)]

    assert value("info", ("version", active_restore.__version__)) == 1
    assert value("restores") == 2
    assert [value("agent_up", ("target", target)) for target in ("/srv", "/other")] == [1, 0]
    assert [value("phase", srv, ("phase", phase)) for phase in ("restoring", "laying")] == [1, 0]
    names = ("files", "files_done", "bytes", "bytes_done", "bytes_underway", "refused_files", "faults_total", "waiting_tasks")
    assert [value(name, srv) for name in names] == [10, 4, 1 << 60, 1 << 59, 77, 1, 7, 2]
    others = ("waiting_longest_seconds", "rate_bytes_per_second", "limit_bytes_per_second", "paused", "running_seconds")
    assert [value(name, srv) for name in others] == [1.5, 1e6, 5, 1, 12.5]
    assert value("source_unreachable_seconds", srv) == 0
    by_range = ("range_files", "range_bytes_present", "range_bytes_wanted_total")
    assert [value(name, srv) for name in by_range] == [2, 30, 20]
    lane = ("lane", "demand")
    assert (value("lane_files_total", srv, lane), value("lane_bytes_total", srv, lane)) == (3, 30)
    assert not any(name == "active_restore_eta_seconds" or ("target", "/other") in labels for name, labels in found
                   if name != "active_restore_agent_up")  # fmt: skip


def test_the_document_names_every_metric() -> None:
    document = _DOCUMENT.read_text()
    for metric in metrics.METRICS:
        assert f"| `{metric.name}` | {metric.kind} |" in document
        assert metric.text in document


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")))
def test_any_target_is_a_label(target: str) -> None:
    found = read(metrics.text([(known(target), STATUS)]))
    labels = {dict(labels).get("target") for name, labels in found if name == "active_restore_files"}
    assert labels == {target}


def test_from_a_restore_that_runs(held_rig: Rig, ext4_target: Path) -> None:
    fill(held_rig.tree)
    agent = held_rig.hold(ext4_target)
    found = read(held_rig.run("status", "--prometheus").stdout)
    assert found["active_restore_agent_up", frozenset({("target", str(ext4_target))})] == 1
    assert found["active_restore_files", frozenset({("target", str(ext4_target))})] > 40
    held_rig.finish(agent, ext4_target)
    assert read(held_rig.run("status", "--prometheus").stdout)["active_restore_restores", frozenset()] == 0
