"""What tasks opened, told to the process that predicts: a pipe that a demand thread writes a few bytes to, and never waits.

The process wakes up, not a thread of ours: the interpreter stays with the threads that serve faults.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEWS = struct.Struct("=I?")
_MOST = 64
_PAUSE_S = 0.005
_LATEST_S = 0.1


class News:
    """The agent's end. ``reader`` is the descriptor that the process inherits."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writer, False)

    def tell(self, row: int, *, waited: bool) -> None:
        """A task opened this file and ``waited`` for it. Where nobody reads fast enough, it is not told: a guess less."""
        with contextlib.suppress(OSError):
            os.write(self._writer, _NEWS.pack(row, waited))

    def end(self) -> None:
        """Nothing more comes; who still tells something tells it to nobody."""
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        # Not closed: a demand thread may be about to write, and must not meet a number used anew.
        os.dup2(nowhere, self._writer, inheritable=False)
        os.close(nowhere)
        # What was not read yet is of no use any more. There is no other writer, so this finds the end.
        while os.read(self.reader, _MOST * _NEWS.size):
            pass

    def close(self) -> None:
        """Nobody tells anything any more."""
        os.close(self.reader)
        os.close(self._writer)


def read(fd: int) -> Iterator[tuple[int, bool]]:
    """``(row, waited)`` until the agent ends it. Whole ones only come: pipes keep short writes together (pipe(7)).

    What came is handed out in a pause of the tasks, or after a while: looking at it while the next fault is served makes
    each fault half as long again on two processors (measured). A remote source leaves such pauses in every fault.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while found := os.read(fd, _MOST * _NEWS.size):
        latest = time.monotonic() + _LATEST_S
        while found and time.monotonic() < latest:
            time.sleep(_PAUSE_S)
            more = os.read(fd, _MOST * _NEWS.size) if poll.poll(0) else b""
            if not more:
                break
            found += more
        yield from _NEWS.iter_unpack(found)
