"""Restores found by their targets and by paths in them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from active_restore.control import registry
from active_restore.errors import ActiveRestoreError, NotRunning

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACTIVE_RESTORE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def write(state: Path, target: str) -> None:
    directory = state / registry.directory_name(target)
    directory.mkdir(parents=True)
    fields = {"restore_id": "x", "source": "dir:/s", "target": target, "snapshot": "latest", "phase": "restoring"}
    (directory / "restore.json").write_text(json.dumps(fields))


def test_none() -> None:
    assert registry.known() == []
    with pytest.raises(NotRunning):
        registry.find("/srv")
    with pytest.raises(NotRunning):
        registry.containing("/srv/x")


def test_innermost_target_holds_the_path(state: Path, tmp_path: Path) -> None:
    outer, inner = str(tmp_path / "tree"), str(tmp_path / "tree/in")
    os.makedirs(inner)
    write(state, outer)
    write(state, inner)
    link = tmp_path / "link"
    link.symlink_to(inner)
    assert [restore.target for restore in registry.known()] == [outer, inner]
    found, relative = registry.containing(f"{link}/deep/file")
    assert (found.target, relative) == (inner, b"deep/file")
    assert registry.containing(outer)[1] == b""
    with pytest.raises(NotRunning):
        registry.containing(outer + "-not")
    assert registry.find(str(link)).target == inner


def test_names_that_are_not_utf8(state: Path, tmp_path: Path) -> None:
    target = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(target)
    write(state, target)
    assert registry.find(target).target == target
    assert registry.containing(target + "/\udcfe")[1] == b"\xfe"


def test_damaged(state: Path) -> None:
    (state / "0123").mkdir(parents=True)
    assert registry.known() == []
    (state / "0123/restore.json").write_text("{")
    with pytest.raises(ActiveRestoreError, match="damaged"):
        registry.known()
