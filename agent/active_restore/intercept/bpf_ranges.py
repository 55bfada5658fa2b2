"""Files by range as the programs see them: which of their pages are there, in memory that the kernel and the agent share.

A map of maps, one array for each inode; the pin of the outer one keeps all of them over the death of the agent.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, Self

from active_restore.ebpf.maps import Map, create_words, open_id
from active_restore.presence import WORD_BYTES, Presence, memory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_INODE, _NUMBER = struct.Struct("=Q"), struct.Struct("=I")
_NAME = "page_words"


class RangedInodes:
    """The map ``presence``; ``None`` where the programs have no ranges. The kernel side only reads it.

    ``empty``: nothing is in it yet that somebody else has left.
    """

    def __init__(self, presence: Map | None, *, empty: bool = True) -> None:
        self._map, self._empty = presence, empty
        self._known: dict[int, Presence] = {}

    @classmethod
    def pinned(cls, pins: Path, *, empty: bool = False) -> Self:
        """As the programs were loaded. Raises ``OSError``."""
        pin = pins / "map_presence"
        return cls(Map.pinned(pin) if pin.exists() else None, empty=empty)

    def __bool__(self) -> bool:
        return self._map is not None

    def hold(self, inode: int, size: int) -> tuple[memoryview, bool] | None:
        """The memory of the ``Presence`` of a file, and whether it is new; ``None`` where there is no room for another one."""
        if self._map is None:
            return None
        try:
            memory = self._memory(self._map, _INODE.pack(inode), memory_bytes(size))
        except OSError:
            return None
        presence = self._known[inode] = Presence(memory, size)
        is_new = not presence.described
        if is_new:
            presence.forget()
            presence.describe()
        return memory, is_new

    @staticmethod
    def _memory(outer: Map, key: bytes, length: int) -> memoryview:
        there = outer.get(key)
        fd = create_words(length // WORD_BYTES, _NAME) if there is None else open_id(*_NUMBER.unpack(there))
        try:
            memory = memoryview(mmap.mmap(fd, length))
            if there is None:
                outer.put(key, _NUMBER.pack(fd))
        finally:
            os.close(fd)
        return memory

    def doubt(self, inodes: Iterable[int]) -> None:
        """What is there of these may be lost: nobody goes on before the next agent has looked."""
        for inode in self._known.keys() & set(inodes):
            self._known[inode].forget()

    def forget(self, inodes: NDArray[np.uint64]) -> None:
        """Nobody goes on by what a dead agent knew of these. Called after their gates were closed."""
        if self._map is not None and not self._empty:
            for inode in inodes.tolist():
                self._map.remove(_INODE.pack(inode))

    def drop(self, inodes: Iterable[int]) -> None:
        """These are by range no more. Called after their gates were opened."""
        if self._map is not None and self._known:
            for inode in self._known.keys() & set(inodes):
                del self._known[inode]
                self._map.remove(_INODE.pack(inode))

    def close(self) -> None:
        """Give the descriptor back; the pin stays."""
        if self._map is not None:
            self._map.close()
