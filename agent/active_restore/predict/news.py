"""What tasks opened, told to the process that predicts: a ring in shared memory, to which a demand thread adds a number.

Nobody is woken for it while the process is awake: it looks by itself every few milliseconds, and says when it goes to
sleep. So telling costs a fault less than a microsecond, where a write into a pipe and the wake-up behind it cost a third
of the fault (measured).

Not guaranteed: that all is read. Who falls behind by more than the ring holds loses the oldest: a guess less.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# A word each: how many were read, whether the reader sleeps, then the ring.
_READ, _ASLEEP, _RING = 0, 1, 8
_SLOTS = 1 << 12
_BYTES = 8 * (_RING + _SLOTS)
# A slot: its number, counted from 1 and cut to what is left of 64 bits; the row; whether a task had to wait.
_ROW_BITS = 32
_NUMBER_SHIFT = _ROW_BITS + 1
_NUMBERS = 1 << (64 - _NUMBER_SHIFT)
# The agent makes the process nicer by this while it starts.
START_NICE = 10
_MOST_RINGS = 64
_PAUSE_MS = 5
_LATEST_S = 1.0
_AWAKE_S = 1.0
# Of two processors that write and look crosswise, both may see the past: then it is found by itself, this late.
_ASLEEP_MS = 1000


class News:
    """The agent's end. ``ring`` and ``bell`` are the descriptors that the process inherits."""

    def __init__(self) -> None:
        self.ring = os.memfd_create("active-restore-news", os.MFD_CLOEXEC)
        os.ftruncate(self.ring, _BYTES)
        self._words = memoryview(mmap.mmap(self.ring, _BYTES)).cast("Q")
        self._words[_ASLEEP] = 1
        self._next = itertools.count().__next__
        self.bell, self._rope = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._rope, False)

    def tell(self, row: int, *, waited: bool) -> None:
        """A task opened this file and ``waited`` for it. Called by any thread; never waits."""
        words = self._words
        number = self._next()
        words[_RING + number % _SLOTS] = (number + 1) % _NUMBERS << _NUMBER_SHIFT | row << 1 | waited
        if words[_ASLEEP]:
            words[_ASLEEP] = 0
            with contextlib.suppress(OSError):
                os.write(self._rope, b"!")

    def end(self) -> None:
        """Nothing more comes; who still tells something tells it to nobody."""
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        # Not closed: a demand thread may be about to write, and must not meet a number used anew.
        os.dup2(nowhere, self._rope, inheritable=False)
        os.close(nowhere)

    def close(self) -> None:
        """Nobody tells anything any more."""
        os.close(self.ring)
        os.close(self.bell)
        os.close(self._rope)


class Reading:
    """The other end, in the process: ``batches`` until the agent ends it."""

    def __init__(self, ring: int, bell: int) -> None:
        self._words = memoryview(mmap.mmap(ring, _BYTES)).cast("Q")
        self._bell = bell
        self._poll = select.poll()
        self._poll.register(bell, select.POLLIN)
        self._ended = False

    def batches(self) -> Iterator[list[tuple[int, bool]]]:
        """``(row, waited)``, oldest first. What came is handed out in a pause of the tasks, or after a while.

        Looking into it while the next fault is served makes each fault half as long again on two processors (measured), and
        whoever gets one every millisecond cannot be overtaken. A remote source leaves such pauses in every fault.
        """
        found: list[tuple[int, bool]] = []
        woke = latest = time.monotonic()
        while not self._ended:
            more = self._new()
            now = time.monotonic()
            if more:
                woke = now
                latest = latest if found else now + _LATEST_S
                found += more
            if found and (not more or now >= latest):
                yield found
                found = []
            elif not more and now - woke > _AWAKE_S:
                self._sleep()
                woke = time.monotonic()
            else:
                self._wait(_PAUSE_MS)

    def _new(self) -> list[tuple[int, bool]]:
        words = self._words
        at = words[_READ]
        found = []
        while (ahead := self._ahead(at)) >= 0:
            value = words[_RING + at % _SLOTS]
            # Overtaken: this slot was written anew, so everything up to a ring before it is lost.
            at += ahead + 1
            found.append((value >> 1 & ((1 << _ROW_BITS) - 1), bool(value & 1)))
        words[_READ] = at
        return found

    def _ahead(self, at: int) -> int:
        """By how many numbers the slot of ``at`` is newer than expected; negative where it was not written yet."""
        value = self._words[_RING + at % _SLOTS]
        ahead = ((value >> _NUMBER_SHIFT) - (at + 1)) % _NUMBERS
        return ahead if value and ahead < _NUMBERS // 2 else -1

    def _sleep(self) -> None:
        self._words[_ASLEEP] = 1
        if self._ahead(self._words[_READ]) < 0:
            self._wait(_ASLEEP_MS)
        self._words[_ASLEEP] = 0

    def _wait(self, milliseconds: int) -> None:
        """Until somebody rings or the time is over."""
        if self._poll.poll(milliseconds):
            self._ended = not os.read(self._bell, _MOST_RINGS)
