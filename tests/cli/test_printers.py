"""What restores tell: as JSON, as lines, and live on a real terminal; and that no reader can hold one up."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import threading
from typing import TYPE_CHECKING

import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_restore.cli.printers.json_lines import JsonPrinter, event_fields
from active_restore.cli.printers.plain import PlainPrinter, event_lines, share, status_lines, time_left_words
from active_restore.cli.printers.threaded import ThreadedReporter
from active_restore.model import Lane, Task
from active_restore.restore.progress import (
    Done,
    FaultServed,
    LaneCount,
    Notice,
    Planned,
    Progress,
    Ready,
    Refused,
    Status,
    Waiting,
)

if TYPE_CHECKING:
    from active_restore.cli.printers.threaded import Printer
    from active_restore.restore.progress import Event

STATUS = Status(
    phase="restoring",
    target="/srv",
    source="restic:/repo",
    snapshot="ab12cd34",
    interceptor="fanotify",
    seconds=12.0,
    files_total=1000,
    bytes_total=4 << 30,
    files_done=999,
    bytes_done=(4 << 30) - 1,
    refused=0,
    faults=7,
    rate_bytes_per_s=50e6,
    eta_s=0.01,
    lanes={"demand": LaneCount(12, 3 << 20), "background": LaneCount(987, 4 << 30)},
    waiting=(Waiting(b"etc/\x1b]0;evil\x07\xff", Task(4242, 4242, "nginx"), 1500.0),),
)
EVENTS: list[Event] = [
    Planned(1000, 4 << 30, 1200, "ab12cd34"),
    Ready(1.25),
    FaultServed(b"etc/nginx.conf", Task(7, 6, "nginx"), 12.5, Lane.DEMAND),
    FaultServed(b"\xff", Task(7, 6, "x"), 1.0, Lane.PREDICTED),
    Refused(b"bad\nname", errno.EIO, "pack is damaged"),
    Notice("the source is away"),
    Progress(STATUS),
    Done(999, 5, 7, 1, 13.0),
]


def lines_of(make_printer: type[JsonPrinter | PlainPrinter], events: list[Event]) -> list[str]:
    """What comes out of a pipe; a thread reads it, as a program would."""
    reader, writer = os.pipe()
    out: list[bytes] = []

    def read() -> None:
        with os.fdopen(reader, "rb") as file:
            out.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    with ThreadedReporter(make_printer(writer)) as reporter:
        for event in events:
            reporter.event(event)
    os.close(writer)
    thread.join()
    return out[0].decode().splitlines()


def test_json_events() -> None:
    told = [json.loads(line) for line in lines_of(JsonPrinter, EVENTS)]
    assert [fields["event"] for fields in told] == [
        "planned", "ready", "fault", "fault", "refused", "notice", "progress", "done",
    ]  # fmt: skip
    planned, ready, fault, odd, refused, _, progress, done = told
    assert planned == {"event": "planned", "files": 1000, "bytes": 4 << 30, "entries": 1200, "snapshot": "ab12cd34"}
    assert ready == {"event": "ready", "seconds": 1.25}
    assert fault == {
        "event": "fault",
        "path": "etc/nginx.conf",
        "task": {"tid": 7, "tgid": 6, "comm": "nginx"},
        "waited_ms": 12.5,
        "lane": "demand",
    }
    assert (odd["path"], odd["path_b64"], odd["lane"]) == ("\\xff", "/w==", "predicted")
    assert refused == {
        "event": "refused",
        "path": "bad\nname",
        "errno": 5,
        "errno_name": "EIO",
        "detail": "pack is damaged",
    }
    assert progress["lanes"]["demand"] == {"files": 12, "bytes": 3 << 20}
    assert progress["waiting"][0]["task"]["comm"] == "nginx"
    assert done == {"event": "done", "files": 999, "bytes": 5, "faults": 7, "refused": 1, "seconds": 13.0}


def test_plain_lines() -> None:
    told = lines_of(PlainPrinter, EVENTS)
    assert told[0] == "planned: 1,000 files, 4.00 GiB in snapshot ab12cd34 (1,200 entries)"
    assert told[1].startswith("ready: ")
    assert told[2] == r"refused: bad\nname: EIO: pack is damaged"
    assert told[3] == "note: the source is away"
    assert told[-1] == "finished: 999 files, 5 B in 13 s, 7 faults served; 1 file could NOT be restored (listed above)"
    assert all(line.isprintable() for line in told)


def test_progress_says_what_is_so() -> None:
    line, waiting = status_lines(STATUS)
    assert "99.9%" in line
    assert "about 1 s left" in line
    assert "999 of 1,000 files" in line
    assert waiting == r"waiting: nginx (4242) for etc/\x1b]0;evil\x07\xff, 1.5 s"


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.one_of(st.none(), st.floats(0, 1e6)))
def test_100_percent_and_nothing_left_only_at_the_end(files: int, more: int, size: int, rest: int, eta: float | None) -> None:
    status = Status(
        phase="restoring", target="/", source="s", snapshot="", interceptor="", seconds=1, eta_s=eta,
        files_total=files + more, files_done=files, bytes_total=size + rest, bytes_done=size,
    )  # fmt: skip
    left = bool(more or rest)
    assert (share(status) == "100%") == (not left)
    assert (time_left_words(status) == "nothing left to fetch") == (not left)
    assert " 0 s" not in time_left_words(status)


def test_every_event_has_both_forms() -> None:
    for event in EVENTS:
        json.dumps(event_fields(event))
        assert all("\n" not in line for line in event_lines(event))


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("printer", [JsonPrinter, PlainPrinter])
def test_a_closed_pipe_disturbs_nobody(printer: type[JsonPrinter | PlainPrinter]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with ThreadedReporter(printer(writer)) as reporter:
        for _ in range(1000):
            for event in EVENTS:
                reporter.event(event)
    os.close(writer)


def test_a_reader_that_stands_still_holds_up_nobody_and_hears_of_what_it_missed() -> None:
    reader, writer = os.pipe()
    fault = EVENTS[2]
    out: list[bytes] = []
    with ThreadedReporter(JsonPrinter(writer)) as reporter:
        for _ in range(60_000):  # far more than pipe and queue hold: an event that waited would hang here
            reporter.event(fault)
        reporter.event(EVENTS[-1])

        def read() -> None:
            with os.fdopen(reader, "rb") as file:
                out.append(file.read())

        thread = threading.Thread(target=read)
        thread.start()
    os.close(writer)
    thread.join()
    told = [json.loads(line) for line in out[0].splitlines()]
    kinds = [fields["event"] for fields in told]
    assert kinds.count("done") == 1
    missed = sum(int(fields["text"].split()[0]) for fields in told if fields["event"] == "notice")
    assert missed > 0
    assert kinds.count("fault") + missed == 60_000


def test_a_descriptor_that_does_not_block() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    out: list[bytes] = []

    def read() -> None:
        with os.fdopen(reader, "rb") as file:
            out.append(file.read())

    with ThreadedReporter(JsonPrinter(writer)) as reporter:
        for _ in range(5000):
            reporter.event(EVENTS[2])
        thread = threading.Thread(target=read)
        thread.start()
    os.close(writer)
    thread.join()
    assert out[0].count(b"\n") == 5000


class Slow:
    """A printer that waits until it is told to go on."""

    period_s = 60.0

    def __init__(self) -> None:
        self.go = threading.Event()
        self.told: list[Event] = []

    def show(self, event: Event) -> None:
        self.told.append(event)
        self.go.wait(30)

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_only_the_newest_status_is_told() -> None:
    printer = Slow()
    as_printer: Printer = printer
    with ThreadedReporter(as_printer) as reporter:
        reporter.event(EVENTS[1])
        for files in range(100):
            reporter.event(Progress(Status("restoring", "/", "s", "", "", 0.0, files_done=files)))
        reporter.event(EVENTS[-1])
        printer.go.set()
    statuses = [event.status.files_done for event in printer.told if isinstance(event, Progress)]
    assert len(statuses) <= 2
    assert statuses[-1] == 99
    assert isinstance(printer.told[-1], Done)


LIVE = """
import sys, threading
from active_restore.cli.printers.choice import reporter
from tests.cli.test_printers import EVENTS, STATUS
from active_restore.restore.progress import Progress
with reporter(as_json=False) as told:
    for event in EVENTS[:-1]:
        told.event(event)
    sys.stdin.readline()
    told.event(EVENTS[-1])
"""


def test_live_display_on_a_terminal() -> None:
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(["agent", "."]), "LC_ALL": "C.UTF-8"}
    child = pexpect.spawn(sys.executable, ["-c", LIVE], env=environment, timeout=20, dimensions=(40, 160), encoding="utf-8")
    shown = io.StringIO()
    child.logfile_read = shown
    try:
        child.expect("planned: 1,000 files")
        child.expect("ready: ")
        child.expect("refused: bad")
        child.expect("restoring")
        child.expect("99.9%")
        child.expect(r"demand\s+\S*\s+12 files +3\.00 MiB")
        child.expect(r"waiting\S* +nginx")
        child.sendline("")
        child.expect("could NOT be restored")
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.exitstatus == 0
    assert "\x1b]0;evil" not in shown.getvalue()


def test_no_live_display_on_a_dumb_terminal() -> None:
    environment = {**os.environ, "TERM": "dumb", "PYTHONPATH": os.pathsep.join(["agent", "."])}
    child = pexpect.spawn(sys.executable, ["-c", LIVE], env=environment, timeout=20, encoding="utf-8")
    try:
        child.expect("ready: ")
        child.sendline("")
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.before is None or "\x1b[" not in child.before
