"""What tests of interceptors in this very process share."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from active_restore.intercept.base import Territory
from active_restore.marker import marker_prefix
from tests.kernel.disks import restore_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.disks import Disk


@pytest.fixture
def territory(ext4: Disk, tmp_path: Path) -> Iterator[Territory]:
    """A directory that nobody guards."""
    root = ext4.mount / tmp_path.name
    root.mkdir()
    restore_id = restore_id_of(root)
    yield Territory(str(root), restore_id, marker_prefix(restore_id), str(tmp_path), 100)
    with contextlib.suppress(OSError):
        root.rmdir()
