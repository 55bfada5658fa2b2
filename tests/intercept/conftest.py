"""What tests of interceptors in this very process share."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from active_restore.intercept.base import Territory
from active_restore.marker import marker_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.disks import Disk

_RESTORE_ID = "00112233445566ee"


@pytest.fixture
def territory(ext4: Disk, tmp_path: Path) -> Iterator[Territory]:
    """A directory that nobody guards."""
    root = ext4.mount / tmp_path.name
    root.mkdir()
    yield Territory(str(root), _RESTORE_ID, marker_prefix(_RESTORE_ID), str(tmp_path), 100)
    with contextlib.suppress(OSError):
        root.rmdir()
