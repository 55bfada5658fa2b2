"""The LSM programs of an armed restore, taken off and put on again between two measurements."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from active_restore.ebpf import maps

if TYPE_CHECKING:
    from pathlib import Path

_PROG_GET_FD_BY_ID, _RAW_TRACEPOINT_OPEN = 13, 17


class Hooks:
    """``pins`` is the directory of the restore's pins; the programs are on when this is made and must be on in the end."""

    def __init__(self, pins: Path) -> None:
        self._programs: dict[Path, int] = {}
        for link in pins.glob("link_*"):
            if link.name.endswith("sched_process_exit"):
                continue
            fd = maps.open_pin(link)
            try:
                _type, _id, program = struct.unpack_from("=3I", maps.info(fd, link.name))
            finally:
                os.close(fd)
            self._programs[link] = maps.bpf(_PROG_GET_FD_BY_ID, struct.pack("=3I", program, 0, 0), link.name)

    def off(self) -> None:
        """No program is run for an open any more."""
        for link in self._programs:
            link.unlink()

    def on(self) -> None:
        """As before."""
        for link, program in self._programs.items():
            fd = maps.bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QII", 0, program, 0), link.name)
            maps.pin(fd, link)
            os.close(fd)

    def close(self) -> None:
        """Give the programs back."""
        for program in self._programs.values():
            os.close(program)
