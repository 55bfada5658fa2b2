"""Guards of other restores whose agent is dead, on the file system where we begin to lay.

They know placeholders by the number of their inode. Where such a one was deleted, or the disk was put back to an older state, a
file that we lay may get its number, and nobody would be there to find out that it is another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

import numpy as np

from active_restore.ebpf import abi
from active_restore.intercept.gates import Gates
from active_restore.intercept.pins import Pins, place_of
from active_restore.intercept.stopped import resume_all
from active_restore.intercept.waits import Waiters, row_of
from active_restore.linux import bpffs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from active_restore.intercept.base import Territory
    from active_restore.intercept.gates import Rows
    from active_restore.intercept.waits import Wait
    from active_restore.linux.inode_numbers import InodeNumbers


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """While an agent closes gates nobody else opens them: bits of others lie in the same words."""
    with _locked(fcntl.LOCK_SH):
        yield


class Orphans:
    """Those that are there when this is made."""

    def __init__(self, territory: Territory, numbers: InodeNumbers) -> None:
        self._territory, self._numbers = territory, numbers
        self._place = place_of(territory.root)
        self._names = [path.name for path in bpffs.pins("").glob("*") if (path / "map_gate").exists()]
        self._names = [name for name in self._names if name != territory.restore_id]

    def let_go(self, inodes: NDArray[np.uint64], rows: Rows, handle_of: Callable[[int], bytes] | None) -> None:
        """Open their gates for what is ours. An agent that lives finds that out itself, by who waits.

        As ``Interceptor.add`` says, of which these are the numbers.
        """
        if not self._names:
            return
        with _locked(fcntl.LOCK_EX):
            for name in self._names:
                # Another agent may be just ending it.
                with contextlib.suppress(OSError), contextlib.closing(Pins(bpffs.pins(name))) as pins:
                    if pins.state("STATE_AGENT") == 0 and pins.are_of(self._place):
                        gates = Gates(pins.maps["gate"], abi.load().structs["gate_word"])
                        # One of us may have been killed when it had opened a gate, and nobody been let go yet.
                        waited_for = np.array([wait.inode for wait in _stopped(pins)], np.uint64)
                        ours = np.union1d(gates.closed_among(inodes), np.intersect1d(inodes, waited_for))
                        if handle_of is not None:
                            ours = self._seen(rows.find(ours), handle_of)
                        gates.open_all(ours)
                        opened = set(ours.tolist())
                        # Looked at anew: somebody may have come to the gate before it was open.
                        resume_all({wait.tgid for wait in _stopped(pins) if wait.inode in opened})

    def _seen(self, pairs: Iterable[tuple[int, int]], handle_of: Callable[[int], bytes]) -> NDArray[np.uint64]:
        """The numbers of those that have our marker."""
        return np.array([inode for row, inode in pairs if self._is_ours(row, handle_of(row))], np.uint64)

    def _is_ours(self, row: int, handle: bytes) -> bool:
        # Gone, or its disk fails: whoever waits there is not let go by us.
        with contextlib.suppress(OSError, ValueError):
            return bool(handle) and row_of(self._numbers, handle, self._territory.marker_prefix) == row
        return False


def _stopped(pins: Pins) -> list[Wait]:
    return [wait for wait in Waiters(pins.maps["waiters"], pins.maps["orders"]).all() if wait.stopped]


@contextlib.contextmanager
def _locked(how: int) -> Iterator[None]:
    directory = os.open(bpffs.pins(""), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, how)
        yield
    finally:
        os.close(directory)
