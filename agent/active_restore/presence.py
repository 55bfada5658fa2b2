"""Which pages of a file that is restored by range are there: one bit a page, in memory that the agent shares with the keeper or
with the programs in the kernel.

Words of 64 bits, the lowest byte first: whether a writer was ever let go on; how many pages the backup's file has; the word in
which the bits of groups begin (these two are for the programs, see ``bpf/events.h``); bits of pages; bits of groups of 256
pages that are all there. A page is there when it holds the backup's content or a user's; pages beyond the end that the file
had in the backup are always there. Who sets bits is one process; they are never cleared.
"""

from __future__ import annotations

import struct

PAGE_BYTES = 4096
WORD_BYTES = 8
_GROUP_PAGES = 256
_HEAD = struct.Struct("<QQQ")
_HEAD_WORDS = _HEAD.size // WORD_BYTES


def memory_bytes(size: int) -> int:
    """How much memory a file of ``size`` bytes needs: a little more than 1/32768 of it (32 MiB for 1 TiB)."""
    pages = page_count(size)
    return (_HEAD_WORDS + _words(pages) + _words(-(-pages // _GROUP_PAGES))) * WORD_BYTES


def page_count(size: int) -> int:
    """How many pages a file of ``size`` bytes has."""
    return -(-size // PAGE_BYTES)


def _words(bits: int) -> int:
    return -(-bits // 64)


class Presence:
    """``memory`` is ``memory_bytes`` long, zeros at first. Pages are counted from 0; a range ends before ``last``."""

    def __init__(self, memory: memoryview, size: int) -> None:
        self._memory = memory
        self.pages = page_count(size)
        groups = _HEAD.size + _words(self.pages) * WORD_BYTES
        self.bits = memory[_HEAD.size : groups]
        self._groups = memory[groups:]

    def describe(self) -> None:
        """Tell the kernel side how this memory is laid out; from then on it believes the bits."""
        _HEAD.pack_into(self._memory, 0, self._memory[0], self.pages, _HEAD_WORDS + len(self.bits) // WORD_BYTES)

    @property
    def described(self) -> bool:
        """Whether the kernel side knows this memory."""
        _, pages, _ = _HEAD.unpack_from(self._memory)
        return bool(pages)

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
        if first >= last:
            return
        _set(self.bits, first, last)
        begin, end = first // _GROUP_PAGES, -(-last // _GROUP_PAGES)
        for group in {begin, end - 1}:
            if self.covers(group * _GROUP_PAGES, min((group + 1) * _GROUP_PAGES, self.pages)):
                _set(self._groups, group, group + 1)
        _set(self._groups, begin + 1, end - 1)

    def forget(self) -> None:
        """Nothing is there any more, as far as is known; only while nobody sets bits. The kernel side believes nothing then."""
        self._memory[:] = bytes(len(self._memory))


def _set(bits: memoryview, first: int, last: int) -> None:
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
