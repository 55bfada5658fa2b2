"""A plugin of the pytest inside a machine: brings each result out at once. Outside, it tells which tests there are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_RESULTS = os.environ.get("ACTIVE_RESTORE_RESULTS")
_COLLECT = os.environ.get("ACTIVE_RESTORE_COLLECT")


def pytest_collection_finish(session: pytest.Session) -> None:
    """A line for each test: its name, and the kernels on which it is part of the sample (``None``: all)."""
    if _COLLECT:
        marks = {item.nodeid: item.get_closest_marker("ci") for item in session.items}
        lines = [json.dumps([name, [] if mark is None else list(mark.args) or None]) for name, mark in marks.items()]
        Path(_COLLECT).write_text("".join(f"{line}\n" for line in lines))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A line for each test as soon as it ends: a machine that hangs loses nothing but the test that hung."""
    if _RESULTS and (report.when == "call" or report.outcome != "passed"):
        printed = [f"\n--- {title}\n{text}" for title, text in report.sections if report.outcome == "failed"]
        text = report.longreprtext + "".join(printed)
        entry = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "text": text}
        with Path(_RESULTS).open("a") as file:
            file.write(json.dumps(entry) + "\n")
