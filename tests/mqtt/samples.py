"""A restore as the engine would tell it."""

from __future__ import annotations

from pathlib import Path

from active_restore.model import Lane, Task
from active_restore.mqtt.settings import Broker, Settings
from active_restore.mqtt.topics import Topics
from active_restore.restore.progress import (
    Done,
    FaultServed,
    LaneCount,
    Planned,
    Progress,
    RangeCount,
    Ready,
    Refused,
    Status,
    Waiting,
)

SCHEMAS = Path(__file__).parents[2] / "agent/active_restore/mqtt/schema"
HOSTILE_NAME = b"dir/\xff\x1b[2Jname\n"
TARGET = "/srv/t\udcff"
SOURCE = "restic:rest:http://bob:s3cret@store/repo"
QUICK = {"progress_interval_s": 0.1, "faults_interval_s": 0.1}
LANES = {"demand": LaneCount(1, 10), "predicted": LaneCount(), "background": LaneCount(4, 490)}


def settings(port: int, **more: object) -> Settings:
    """For a broker on this port; ``more`` are fields of ``Settings``."""
    fields = {"broker": Broker("127.0.0.1", port), "topics": Topics("active-restore", "web1"), **QUICK, **more}
    return Settings(**fields)  # type: ignore[arg-type]


def status(files_done: int = 5, *, waiting: int = 0, phase: str = "restoring", paused: bool = False) -> Status:
    """The state of a restore of ten files."""
    return Status(
        phase=phase,  # type: ignore[arg-type]
        target=TARGET,
        source=SOURCE,
        snapshot="ab12",
        interceptor="fanotify",
        seconds=1.5,
        files_total=10,
        bytes_total=1000,
        files_done=files_done,
        bytes_done=100 * files_done,
        faults=1,
        rate_bytes_per_s=12.5,
        eta_s=3.25,
        paused=paused,
        lanes=LANES,
        ranges=RangeCount("pre-content events", 2, 40, 30, 20),
        waiting=tuple(Waiting(HOSTILE_NAME, Task(7 + n, 6, "cat"), 12.5 + n) for n in range(waiting)),
    )


PLANNED = Planned(10, 1000, 12, "ab12")
READY = Ready(0.5)
FAULT = FaultServed(HOSTILE_NAME, Task(7, 6, "cat\udcff"), 3.25, Lane.DEMAND)
REFUSED = Refused(HOSTILE_NAME, 5, "pack damaged")
DONE = Done(9, 900, 1, 1, 2.5)
PROGRESS = Progress(status())
