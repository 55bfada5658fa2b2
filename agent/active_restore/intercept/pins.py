"""What the BPF interceptor leaves in the kernel: its pins, its state words, and how to get rid of them without an agent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.ebpf import abi, program
from active_restore.ebpf.maps import Map
from active_restore.errors import Busy
from active_restore.linux import bpffs

if TYPE_CHECKING:
    from active_restore.intercept.base import Territory

_DIRECTORY = "active_restore"
_SLOT, _VALUE, _ID = struct.Struct("=I"), struct.Struct("=Q"), struct.Struct("=I")
_MAPS = ("gate", "waiters", "orders", "exempt", "state", "counts", "events", "commands", "cgroups")


def directory(restore_id: str) -> Path:
    """Where the pins of a restore lie. Mounts bpffs where that is missing."""
    return bpffs.mount() / _DIRECTORY / restore_id


def start_ticks(tid: int) -> int:
    """When a thread started, in clock ticks since boot (proc(5), field 22 of stat). Raises ``OSError`` where it is gone."""
    stat = Path(f"/proc/{tid}/stat").read_bytes()
    return int(stat.rpartition(b")")[2].split()[19])


class Lock:
    """The agent's claim on a territory; the kernel takes it back when the agent dies."""

    def __init__(self, territory: Territory) -> None:
        """Raises ``Busy`` where another agent lives."""
        self._path = Path(territory.run_dir) / "bpf.lock"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Busy(f"Another agent guards {territory.root}.") from None

    def remove(self) -> None:
        """There is nothing left to claim."""
        self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the territory back."""
        os.close(self._fd)


class Pins:
    """The maps of one restore, opened by their pins."""

    def __init__(self, path: Path) -> None:
        """Raises ``OSError`` where nothing is pinned."""
        self.path = path
        self.maps = {name: Map.pinned(path / f"map_{name}") for name in _MAPS}
        self._slots = abi.load().constants

    def close(self) -> None:
        """Give the descriptors back; the pins stay."""
        for pinned in self.maps.values():
            pinned.close()

    def end_hooks(self) -> None:
        """Nobody is held any more; the maps stay, and with them the knowledge of who is still stopped."""
        for link in self.path.glob("link_*"):
            link.unlink()

    def remove(self) -> None:
        """End every hook, drop the maps."""
        program.unpin(self.path)
        with contextlib.suppress(OSError):
            # Other restores may have theirs there.
            self.path.parent.rmdir()

    def set_state(self, slot: str, value: int) -> None:
        """Write a word of ``enum state``."""
        self.maps["state"].put(_SLOT.pack(self._slots[slot]), _VALUE.pack(value))

    def beat(self) -> None:
        """A sign of life: while it is fresh, waiting threads spin and are parked, instead of being stopped."""
        self.set_state("STATE_HEARTBEAT", time.monotonic_ns())

    def counts(self) -> dict[str, int]:
        """What was held, lost, refused or passed on, by the names of ``enum count``."""
        names = [name for name in self._slots if name.startswith("COUNT_") and name != "COUNT_SLOTS"]
        values = (self.maps["counts"].get(_SLOT.pack(self._slots[name])) for name in names)
        return {name: _VALUE.unpack(value or bytes(8))[0] for name, value in zip(names, values, strict=True)}

    def exempt(self, tid: int) -> None:
        """Never hold this thread, or any thread of this process."""
        self.maps["exempt"].put(_ID.pack(tid), _VALUE.pack(start_ticks(tid)))

    def unexempt(self, tid: int) -> None:
        """Hold it like any other."""
        self.maps["exempt"].remove(_ID.pack(tid))

    def unexempt_all(self) -> None:
        """Those whom an earlier agent exempted are gone."""
        for key, _ in list(self.maps["exempt"].items()):
            self.maps["exempt"].remove(key)
