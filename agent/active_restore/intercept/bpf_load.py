"""Load the programs that hold tasks, for one territory: sizes of their maps."""

from __future__ import annotations

import contextlib
import logging
import mmap
from typing import TYPE_CHECKING

from active_restore.ebpf import growing, program
from active_restore.ebpf.program import Loading
from active_restore.errors import CapabilityMissing
from active_restore.intercept.gates import gate_words
from active_restore.intercept.pins import Pins, place_of
from active_restore.model import FOLIO_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from active_restore.intercept.base import Territory

_log = logging.getLogger(__name__)


def load(territory: Territory, path: Path, ring_pages: int, *, by_range: bool) -> None:
    """Attach them and pin them in ``path``. Raises ``CapabilityMissing`` where that cannot be."""
    place = place_of(territory.root)
    loading = Loading(
        defines={"RANGES": int(by_range), "FOLIO_BYTES": FOLIO_BYTES},
        numbers={"LOADED_TARGET": place["STATE_DEVICE"]},
        entries={"gate": gate_words(territory.rows), "events": ring_pages * mmap.PAGESIZE},
    )
    program.load("gate", path, loading)
    with contextlib.closing(Pins(path)) as loaded:
        for slot, value in place.items():
            loaded.set_state(slot, value)
        if by_range:
            try:
                growing.load(path)
                loaded.set_state("STATE_WINDOWS", 1)
            except (CapabilityMissing, OSError) as error:
                _log.info("mappings wait to the end of their file: %s", error)
