"""A restore from its beginning to its end, on every file system."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.source import trees

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig


def test_equal_to_the_source(rig: Rig, target: Path) -> None:
    trees.fill(rig.tree)
    command = rig.restore(target)
    assert command.end()[0] == 0
    rig.verify(target)
