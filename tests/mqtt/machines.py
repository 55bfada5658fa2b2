"""Machines that are not there: what they would publish."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.mqtt.ear import Ear


def state(node: str, **more: Any) -> dict[str, Any]:
    """A machine at work."""
    fields = {
        "version": 1, "node": node, "time": 1e9, "online": True, "phase": "restoring", "target": "/srv", "source": "restic:/r",
        "snapshot": "ab12", "restore_id": "1f", "interceptor": "fanotify", "agent": "0.1.0", "paused": False,
        "limit_bytes_per_s": 0, "ready_after_s": 0.5, "accepts_commands": False,
        "timeline": [{"phase": "planning", "time": 1e9 - 9}, {"phase": "restoring", "time": 1e9 - 5}],
    }  # fmt: skip
    return {**fields, **more}


def progress(**more: Any) -> dict[str, Any]:
    """Half of it is there."""
    fields = {
        "version": 1, "node": "x", "time": 1e9, "phase": "restoring", "seconds": 5.0, "percent": 50.0,
        "files_total": 1000, "files_done": 500, "bytes_total": 1 << 30, "bytes_done": 1 << 29, "bytes_underway": 0,
        "rate_bytes_per_s": 5.0 * (1 << 20), "eta_s": 102.4,
        "faults": 3, "refused": 0, "waiting": 0, "longest_wait_ms": 12.5, "paused": False, "limit_bytes_per_s": 0,
        "source_unreachable_s": 0.0,
        "lanes": {"demand": {"files": 3, "bytes": 100}, "background": {"files": 497, "bytes": (1 << 29) - 100}},
        "ranges": {"files": 2, "bytes_total": 1 << 26, "bytes_present": 1 << 25, "bytes_wanted": 1 << 20},
    }  # fmt: skip
    return {**fields, **more}


def faults(path: str = "db/base/1", waited_ms: float = 4100.0) -> dict[str, Any]:
    """Two tasks wait."""
    wait = {"path": path, "comm": "postgres", "tid": 12, "tgid": 11, "waited_ms": waited_ms}
    fields = {"version": 1, "node": "x", "time": 1e9, "waiting": [wait], "waiting_total": 2, "faults_total": 3}
    return {**fields, "served": [], "served_total": 0, "served_ms": 0.0}


def report(node: str, **more: Any) -> dict[str, Any]:
    """All went well."""
    fields = {
        "version": 1, "node": node, "time": 1e9, "outcome": "done", "target": "/srv", "source": "restic:/r", "snapshot": "ab12",
        "restore_id": "1f", "files": 1000, "bytes": 1 << 30, "faults": 3, "refused": 0, "seconds": 200.0, "ready_after_s": 0.5,
        "longest_wait_ms": 12.5, "refused_files": [], "timeline": [],
    }  # fmt: skip
    return {**fields, **more}


def publish(ear: Ear, node: str, kind: str, payload: dict[str, Any]) -> None:
    """As an agent would."""
    ear.say(f"active-restore/{node}/{kind}", json.dumps(payload).encode(), retain=kind != "faults")


def publish_some(ear: Ear) -> None:
    """One machine of each kind: at work, with waiting tasks, lost, failed, done."""
    publish(ear, "web1", "state", state("web1"))
    publish(ear, "web1", "progress", progress())
    publish(ear, "db1", "state", state("db1"))
    publish(ear, "db1", "progress", progress(waiting=2, percent=10.0))
    publish(ear, "gone1", "state", state("gone1", online=False, phase="lost"))
    publish(ear, "bad1", "state", state("bad1", online=False, phase="failed"))
    error = {"code": "damaged", "message": "the index is damaged", "hint": ""}
    publish(ear, "bad1", "report", report("bad1", outcome="failed", error=error))
    publish(ear, "old1", "state", state("old1", online=False, phase="done"))
    publish(ear, "old1", "progress", progress(percent=100.0, phase="done"))
    publish(ear, "old1", "report", report("old1"))
