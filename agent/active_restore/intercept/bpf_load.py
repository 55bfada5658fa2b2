"""Load the programs that hold tasks, for one territory: sizes of their maps, and where the headers they need are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.ebpf import program
from active_restore.intercept.gates import gate_words

if TYPE_CHECKING:
    from active_restore.intercept.base import Territory


def load(territory: Territory, pins: Path, ring_pages: int, *, by_range: bool) -> None:
    """Attach them and pin them in ``pins``. Raises ``CapabilityMissing`` where that cannot be."""
    device = os.stat(territory.root).st_dev
    defines = {
        "TARGET_DEV": os.major(device) << 20 | os.minor(device),
        "GATE_WORDS": gate_words(territory.rows),
        "RING_PAGES": ring_pages,
        "RANGES": int(by_range),
    }
    program.load("gate", program.header_tree(headers(territory)), pins, defines)


def headers(territory: Territory) -> Path:
    """Where the kernel's headers for this restore lie."""
    return Path(territory.run_dir) / "headers"
