"""Users who write, truncate, rename, link and delete during the restore keep what they did (invariants 2, 3 and 5)."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel.rig import marked
from tests.kernel.tasks import Task
from tests.restore.actions import ACTIONS, PREAMBLE, outcome

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

OLD_NS = 1_500_000_000_123_456_789
SMALL, LARGE = 30_000, 3_000_000


def fill(tree: Path, size: int) -> None:
    for number in range(len(ACTIONS)):
        file = tree / f"f{number}"
        file.write_bytes(os.urandom(size))
        os.setxattr(file, "user.old", b"old")
        os.utime(file, ns=(OLD_NS, OLD_NS))


def perform(folder: Path) -> None:
    """Every action at once, each on a file of its own."""
    tasks = {name: Task.python(PREAMBLE + code, folder / f"f{number}") for number, (name, code) in enumerate(ACTIONS.items())}
    failures = {}
    for name, task in tasks.items():
        with task:
            code, _, errors = task.finish()
            if code:
                failures[name] = errors.decode()[-300:]
    assert not failures


@pytest.mark.parametrize(("size", "when"), [(SMALL, "held"), (LARGE, "racing")], ids=["small held", "large racing"])
def test_outcome_is_that_of_a_plain_file(held_rig: Rig, target: Path, size: int, when: str) -> None:
    fill(held_rig.tree, size)
    began_ns = time.time_ns()
    # On the same disk: not every file system gives a mapped file a new time when it is written.
    model = target.with_name(f"{target.name}-model")
    shutil.copytree(held_rig.tree, model)
    perform(model)
    command = held_rig.hold(target)
    assert all(marked(target / f"f{number}") for number in range(len(ACTIONS)))
    if when == "racing":
        held_rig.hurry(target)
    perform(target)
    held_rig.finish(command, target)
    held_rig.assert_clean(target)
    wrong = {}
    for number, name in enumerate(ACTIONS):
        for suffix in ("", ".new"):
            ours = outcome(target / f"f{number}{suffix}", began_ns)
            expected = outcome(model / f"f{number}{suffix}", began_ns)
            if ours != expected:
                wrong[name + suffix] = difference(ours, expected)
    assert not wrong


def difference(ours: dict[str, object] | None, expected: dict[str, object] | None) -> object:
    """What differs; of content only the length and whether it is zeros."""
    if ours is None or expected is None:
        return ours is None, expected is None
    return {key: (brief(ours[key]), brief(expected[key])) for key in ours if ours[key] != expected[key]}


def brief(value: object) -> object:
    return (len(value), value[:8], value.count(0)) if isinstance(value, bytes) else value
