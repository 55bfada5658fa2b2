"""The benchmark runs and writes what it promises. What it measures is no matter of a test."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.row import Goal, row

ROOT = Path(__file__).parents[2]
FIELDS = {"name": str, "ours": float, "peer": float, "peer_name": str, "ratio": float, "goal": str, "unit": str}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What a quick run over all groups wrote."""
    path = tmp_path_factory.mktemp("bench") / "results.json"
    env = {**os.environ, "PYTHON": sys.executable}
    ended = subprocess.run(
        [ROOT / "bench/run", "--quick", "--results", path], env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "against its peers" in ended.stdout
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def test_every_row_has_every_field(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found.keys() == {*FIELDS, "holds"}
        for name, kind in FIELDS.items():
            assert isinstance(found[name], (float, int) if kind is float else kind), (name, found)
        assert found["holds"] is None if not found["goal"] else isinstance(found["holds"], bool)


def test_figures_are_positive_and_ratios_are_theirs(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["ours"] > 0
        assert found["peer"] > 0
        ratio = found["ours"] / found["peer"] if "ours/peer" in found["goal"] else found["peer"] / found["ours"]
        assert math.isclose(found["ratio"], ratio, rel_tol=0.01, abs_tol=0.002), found


def test_no_row_is_there_twice(results: list[dict[str, Any]]) -> None:
    keys = [(found["name"], found["peer_name"]) for found in results]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    "words",
    [
        "reader only, 1 worker",
        "2 workers",
        "tar x",
        "placeholders",
        "4-64 KiB, busy, p99",
        "1 MiB",
        "open, first",
        "relax mode, open, later",
        "durability",
        "random reads of 4 KiB",
        "made durable",
        "by range, first answer",
        "copied up by overlayfs",
        "there, random",
        "nobody else there",
        "index",
    ],
)
def test_each_goal_of_the_design_has_a_row(results: list[dict[str, Any]], words: str) -> None:
    assert [found for found in results if words in found["name"] + found["peer_name"]]


@pytest.mark.parametrize(
    ("goal", "holds"),
    [
        (Goal("peer/ours", ">=", 2.0), True),
        (Goal("peer/ours", ">=", 2.1), False),
        (Goal("ours/peer", "<=", 0.5), True),
        (Goal("ours/peer", "<=", 0.4), False),
        (Goal("ours", "<=", 2.0), True),
        (Goal("ours", "<=", 1.9), False),
        (Goal("ours-peer", "<=", -2.0), True),
        (Goal("ours-peer", "<=", -2.1), False),
    ],
    ids=str,
)
def test_goals(goal: Goal, *, holds: bool) -> None:
    made = row("a pair", "s", [1.0, 2.0, 3.0], ("peer", [4.0, 4.0, 9.0]), goal)
    assert (made.ours, made.peer, made.holds) == (2.0, 4.0, holds)
