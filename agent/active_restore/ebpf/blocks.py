"""The block programs at work: whose requests each disk serves, and how fast. Nothing of them outlives this process."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

from active_restore.ebpf import abi, program
from active_restore.ebpf.maps import Map, open_pin
from active_restore.ebpf.program import Loading

if TYPE_CHECKING:
    from collections.abc import Mapping

SLOTS = 96
_LINKS = ("insert", "merge", "issue", "complete")


class BlockWatch:
    """Loads the programs; they end with ``close`` or with this process, whatever ends it.

    Raises ``CapabilityMissing`` where they cannot be loaded, ``OSError`` where bpffs cannot be mounted.
    """

    def __init__(self, name: str) -> None:
        with program.held("block", name, Loading()) as pins:
            self._links = [open_pin(pins / f"link_block_rq_{link}") for link in _LINKS]
            self._own = Map.pinned(pins / "map_own")
            self._devices = Map.pinned(pins / "map_devices")
        self._layout = abi.load().structs["device_load"]

    def own(self, processes: Mapping[int, int]) -> None:
        """These are ours: process id -> its start in clock ticks since boot."""
        wanted = {struct.pack("=I", pid): struct.pack("=Q", since) for pid, since in processes.items()}
        for key, _ in list(self._own.items()):
            if key not in wanted:
                self._own.remove(key)
        for key, value in wanted.items():
            self._own.put(key, value)

    def load(self, device: int) -> dict[str, Any]:
        """``struct device_load`` of a disk (``Disk.kernel_number``), zeros where it served nothing yet."""
        value = self._devices.get(struct.pack("=I", device))
        return self._layout.unpack(value or bytes(self._layout.packed.size))

    def close(self) -> None:
        """End the programs."""
        for link in self._links:
            os.close(link)
        self._own.close()
        self._devices.close()


def slot_start_us(slot: int) -> int:
    """The shortest latency that a slot of ``foreign_latency_us`` counts (see events.h)."""
    return slot if slot < 4 else (4 + slot % 4) << (slot // 4 - 1)
