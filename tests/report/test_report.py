"""The report of real restores, and of logbooks that are damaged or hostile."""

from __future__ import annotations

import json
import os
import signal
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from active_restore.report.digest import Report, digest
from active_restore.report.page import page
from tests.kernel.tasks import read

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

NAME = "<b>&amp;.txt"


def reported(rig: Rig, *arguments: str | Path) -> dict[str, Any]:
    done = rig.run("report", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def well_formed(text: str) -> ET.Element:
    """The page as XML, less what HTML lets be open."""
    return ET.fromstring(text.replace("<!doctype html>", "").replace('<meta charset="utf-8">', ""))


def test_a_restore_with_an_interruption(held_rig: Rig, ext4_target: Path) -> None:
    (held_rig.tree / NAME).write_text("content")
    (held_rig.tree / "other").write_text("other")
    command = held_rig.hold(ext4_target)
    read(ext4_target / NAME)
    command.signal(signal.SIGINT)
    assert command.end()[0] == 130
    assert reported(held_rig, ext4_target)["done_s"] is None
    command = held_rig.resume(ext4_target)
    read(ext4_target / "other")
    held_rig.finish(command, ext4_target)
    report = reported(held_rig, ext4_target)
    assert report["agents"] == 2
    assert [wait["path"] for wait in report["waits"]] == [NAME, "other"]
    assert report["done_s"] > report["waits"][1]["at_s"] > report["ready_s"]
    assert all(wait["comm"] == "cat" for wait in report["waits"])
    assert sum(unit["faults"] for unit in report["units"].values()) == 2
    assert report["samples"]
    html = held_rig.place / "report.html"
    assert held_rig.run("report", ext4_target, "--html", html).returncode == 0
    text = html.read_text()
    document = well_formed(text)
    assert len(document.findall(".//svg")) == 3
    assert NAME in "".join(document.itertext())
    assert "http" not in text.replace("http-equiv", "")
    assert "usable after" in held_rig.run("report", ext4_target).stdout
    held_rig.assert_clean(ext4_target)


def test_another_restore_begins_another_logbook(rig: Rig, ext4_target: Path) -> None:
    (rig.tree / "file").write_text("content")
    for _ in range(2):
        command = rig.start("restore", rig.source, ext4_target)
        assert command.end()[0] == 0
        report = reported(rig, ext4_target)
        assert (report["agents"], report["files"]) == (1, 1)
        (ext4_target / "file").unlink()


def test_nothing_is_kept_in_the_target(rig: Rig, ext4_target: Path) -> None:
    (rig.tree / "file").write_text("content")
    rig.env["ACTIVE_RESTORE_LOG"] = str(ext4_target / "log")
    command = rig.start("restore", rig.source, ext4_target)
    assert command.end()[0] == 0
    assert os.listdir(ext4_target) == ["file"]
    assert rig.run("report", ext4_target).returncode == 19


VALUES = st.one_of(st.none(), st.integers(-5, 10**12), st.floats(0, 1e6), st.text(max_size=8), st.just({}), st.just([]))
FIELDS = (
    "t",
    "path",
    "comm",
    "unit",
    "waited_ms",
    "files",
    "bytes",
    "seconds",
    "text",
    "detail",
    "events",
    "refused",
    "faults",
    "ranges",
)
EVENTS = st.sampled_from(["begun", "planned", "ready", "progress", "fault", "refused", "notice", "left_out", "done", "strange"])


@given(st.lists(st.tuples(EVENTS, st.dictionaries(st.sampled_from(FIELDS), VALUES)), max_size=20))
def test_a_damaged_logbook_is_no_error(entries: list[tuple[str, dict[str, object]]]) -> None:
    lines = [json.dumps({"t": 1.0, **fields, "event": event}).encode() for event, fields in entries]
    report = digest([*lines, b"{", b"", b"\xff", b"[]"])
    assert isinstance(report, Report)
    for wait in report.waits:
        assert isinstance(wait.path, str)
    well_formed(page(report))
