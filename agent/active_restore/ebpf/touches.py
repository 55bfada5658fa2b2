"""The program that tells of first opens, at work on one file system. It ends with this process, whatever ends it."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from typing import NamedTuple

from active_restore.ebpf import abi, program
from active_restore.ebpf.maps import Map, open_pin
from active_restore.ebpf.program import Loading
from active_restore.ebpf.ring import Ring

_RING_PAGES = 256


class Touched(NamedTuple):
    """Thread group ``pid`` opened ``name`` in the directory with this inode number and generation."""

    pid: int
    directory: int
    generation: int
    name: bytes


class TouchWatch:
    """First opens on the file system of ``device`` (``st_dev``), but not ours; ``fd`` can be polled for reading.

    Raises ``CapabilityMissing`` where the program cannot be loaded, ``OSError`` where bpffs cannot be mounted.
    """

    def __init__(self, device: int) -> None:
        number = os.major(device) << 20 | os.minor(device)
        numbers = {"LOADED_TARGET": number, "LOADED_WATCHER": os.getpid()}
        loading = Loading(numbers=numbers, entries={"touches": _RING_PAGES * mmap.PAGESIZE})
        with program.held("touch", str(number), loading) as pins:
            self._link = open_pin(pins / "link_file_open")
            self._told = Map.pinned(pins / "map_told")
            self._touches = Map.pinned(pins / "map_touches")
        self._ring = Ring(self._touches)
        self.fd = self._touches.fd
        self._layout = abi.load().structs["touch"]

    def read(self) -> list[Touched]:
        """What has come since the last time."""
        found = [self._layout.unpack(event) for event in self._ring.read(0)]
        return [
            Touched(touch["tgid"], touch["directory"], touch["generation"], touch["name"].partition(b"\0")[0])
            for touch in found
        ]

    def forget(self, inode: int) -> None:
        """Tell of the next open of this file, too. ``inode`` is a descriptor, O_PATH is enough. Raises ``OSError``."""
        try:
            self._told.remove(struct.pack("=i", inode))
        except OSError as error:
            if error.errno != errno.EBADF:
                raise

    def close(self) -> None:
        """End the program."""
        self._ring.close()
        os.close(self._link)
        self._told.close()
        self._touches.close()
