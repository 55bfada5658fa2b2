"""Fixtures of every test that needs a kernel: disks, and a rig that must be settled in the end."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import pytest

from tests.kernel.disks import KINDS, Disk, mounted
from tests.kernel.rig import Rig, add_decoys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_number = itertools.count()


@pytest.fixture(scope="session")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Disk]]:
    """Gives the one disk of a kind; made when it is first asked for."""
    made: dict[str, Disk] = {}
    with contextlib.ExitStack() as stack:

        def disk(kind: str) -> Disk:
            if kind not in made:
                made[kind] = stack.enter_context(mounted(kind, tmp_path_factory.mktemp("disk")))
            return made[kind]

        yield disk


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, disks: Callable[[str], Disk]) -> Disk:
    """Each kind of file system."""
    return disks(request.param)


@pytest.fixture
def ext4(disks: Callable[[str], Disk]) -> Disk:
    """The usual one, for what does not depend on the file system."""
    return disks("ext4")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A rig with an empty source. The test must leave no process behind."""
    tree = tmp_path / "source"
    tree.mkdir()
    rig = Rig(tmp_path, tree)
    yield rig
    left = rig.end()
    assert not left, f"processes were left: {left}"


@pytest.fixture
def held_rig(rig: Rig) -> Rig:
    """A rig whose source begins with decoys: see ``Rig.hold``."""
    add_decoys(rig.tree)
    return rig


@pytest.fixture
def target(disk: Disk) -> Path:
    """A directory that is not there yet, on each kind of file system."""
    return disk.mount / f"target{next(_number)}"


@pytest.fixture
def ext4_target(ext4: Disk) -> Path:
    """A directory that is not there yet, on ext4."""
    return ext4.mount / f"target{next(_number)}"
