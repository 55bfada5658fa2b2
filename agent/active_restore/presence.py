"""Which pages of a file that is restored by range are there: one bit a page, in memory that agent and keeper share.

The first byte tells whether a writer was ever let go on. A page is there when it holds the backup's content or a user's;
pages beyond the end that the file had in the backup are always there. Who sets bits is one process; they are never cleared.
"""

from __future__ import annotations

PAGE_BYTES = 4096
_HEAD_BYTES = 1


def memory_bytes(size: int) -> int:
    """How much memory a file of ``size`` bytes needs: 1/32768 of it (32 MiB for 1 TiB)."""
    return _HEAD_BYTES + (page_count(size) + 7) // 8


def page_count(size: int) -> int:
    """How many pages a file of ``size`` bytes has."""
    return -(-size // PAGE_BYTES)


class Presence:
    """``memory`` is ``memory_bytes`` long, zeros at first. Pages are counted from 0; a range ends before ``last``."""

    def __init__(self, memory: memoryview, size: int) -> None:
        self._memory = memory
        self.bits = memory[_HEAD_BYTES:]
        self.pages = page_count(size)

    @property
    def touched(self) -> bool:
        """Whether a writer was let go on."""
        return self._memory[0] != 0

    def touch(self) -> None:
        """A writer is about to go on."""
        self._memory[0] = 1

    def clip(self, offset: int, length: int) -> tuple[int, int]:
        """The pages that hold these bytes, without those beyond the end."""
        last = min(page_count(offset + length), self.pages)
        return min(offset // PAGE_BYTES, last), last

    def covers(self, first: int, last: int) -> bool:
        """Whether all of these pages are there."""
        if first >= last:
            return True
        word = int.from_bytes(self.bits[first >> 3 : (last + 7) >> 3], "little") >> (first & 7)
        mask = (1 << (last - first)) - 1
        return word & mask == mask

    def add(self, first: int, last: int) -> None:
        """These pages are there. Only one thread at a time."""
        bits = self.bits
        while first < last and first & 7:
            bits[first >> 3] |= 1 << (first & 7)
            first += 1
        whole = (last - first) >> 3
        if whole > 0:
            at = first >> 3
            bits[at : at + whole] = b"\xff" * whole
            first += whole << 3
        while first < last:
            bits[first >> 3] |= 1 << (first & 7)
            first += 1
