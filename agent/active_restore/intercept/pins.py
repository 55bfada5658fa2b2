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
from active_restore.intercept.stopped import resume_all
from active_restore.intercept.waits import Waiters
from active_restore.linux import bpffs, superblock
from active_restore.linux.new_mount import mount_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from active_restore.intercept.base import Territory

_SLOT, _VALUE, _UUID = struct.Struct("=I"), struct.Struct("=Q"), struct.Struct("=QQ")
_MAPS = ("gate", "waiters", "orders", "state", "counts", "events", "commands", "cgroups")


def directory(restore_id: str) -> Path:
    """Where the pins of a restore lie. Mounts bpffs where that is missing."""
    bpffs.mount()
    return bpffs.pins(restore_id)


def abandon(restore_id: str, errno: int) -> None:
    """Without an agent: refuse all who wait and will come, with ``errno``. Raises ``OSError`` where nothing is pinned."""
    with contextlib.closing(Pins(directory(restore_id))) as left:
        left.set_state("STATE_ABANDON", errno)
        resume_all({wait.tgid for wait in Waiters(left.maps["waiters"], left.maps["orders"]).all() if wait.stopped})


def left(territory: Territory) -> Path | None:
    """What a dead agent left; ``None`` where that is nothing.

    Programs of another file system (this one was mounted from another device since) would hold nobody: they are ended, and
    who is still stopped by them goes on.
    """
    path = directory(territory.restore_id)
    if not path.is_dir():
        return None
    with contextlib.closing(Pins(path)) as found:
        if found.are_of(place_of(territory.root)):
            return path
        found.end_hooks()
        resume_all({wait.tgid for wait in Waiters(found.maps["waiters"], found.maps["orders"]).all() if wait.stopped})
        found.remove()
    return None


def place_of(root: str) -> dict[str, int]:
    """The file system of this directory, as the words of ``enum state`` that tell it."""
    number = os.stat(root).st_dev
    try:
        low, high = _UUID.unpack(superblock.uuid(root))
    except OSError:
        low = high = 0
    return {
        "STATE_DEVICE": os.major(number) << 20 | os.minor(number),
        "STATE_UUID_LOW": low,
        "STATE_UUID_HIGH": high,
    }


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

    def state(self, slot: str) -> int:
        """Read a word of ``enum state``."""
        return int(_VALUE.unpack(self.maps["state"].get(_SLOT.pack(self._slots[slot])) or bytes(_VALUE.size))[0])

    def are_of(self, place: Mapping[str, int]) -> bool:
        """Whether the programs were loaded for this file system, mounted from the same device: they hold nobody at another."""
        return all(self.state(slot) == value for slot, value in place.items())

    def beat(self) -> None:
        """A sign of life: while it is fresh, waiting threads spin and are parked, instead of being stopped."""
        self.set_state("STATE_HEARTBEAT", time.monotonic_ns())

    def counts(self) -> dict[str, int]:
        """What was held, lost, refused or passed on, by the names of ``enum count``."""
        names = [name for name in self._slots if name.startswith("COUNT_") and name != "COUNT_SLOTS"]
        values = (self.maps["counts"].get(_SLOT.pack(self._slots[name])) for name in names)
        return {name: _VALUE.unpack(value or bytes(8))[0] for name, value in zip(names, values, strict=True)}

    def serve(self, agent: int, passage: int) -> None:
        """``agent`` is the process that serves from now on; nobody is held who opens from the mount of ``passage``.

        The kernel side forgets the mount when that process ends.
        """
        self.set_state("STATE_PASSAGE", 0)
        self.set_state("STATE_AGENT", agent)
        self.set_state("STATE_PASSAGE", 1 + mount_id(passage))
