"""Which inodes are guarded, as the kernel side sees it: one bit an inode, 64 inodes a word, and the row of each inode."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from active_restore.errors import CapabilityMissing
from active_restore.marker import MARKER
from active_restore.model import Gate, Intent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from active_restore.ebpf.abi import Layout
    from active_restore.ebpf.maps import Map
    from active_restore.intercept.base import Territory

_WORD_BITS = 64
_ROW_BYTES = 8
_MAYBE_BITS = 20
_SPARE_WORDS = 16384
_INODES_A_WORD_AT_WORST = 32
_ROWS_UNKNOWN = 10_000_000
# Some megabytes of tables, which are used again, instead of new ones of a hundred.
_AT_ONCE = 1 << 20
# Up to this many inode numbers in their span for each one given, they are marked in a table of all.
_DENSE = 8
# Beyond this many bytes for each row given, rows lie too far apart to be written as one block.
_SPARSE = 64


def gate_words(rows: int) -> int:
    """Room for so many placeholders (0: not known yet). The kernel makes a power of two of buckets (16 bytes each)."""
    return 1 << (_SPARE_WORDS + (rows or _ROWS_UNKNOWN) // _INODES_A_WORD_AT_WORST - 1).bit_length()


class Word(NamedTuple):
    """A value of the map ``gate``; see ``bpf/events.h``."""

    readers: int
    writers: int
    ranged: int


class Gates:
    """The map ``gate``. All changes are the agent's, one at a time; the kernel side only reads.

    ``empty``: whether nothing is in it yet. Then words that were never put are not looked up: that would take most of the time.
    """

    def __init__(self, gate: Map, layout: Layout, *, empty: bool = False) -> None:
        self._map, self._layout = gate, layout
        self._lock = threading.Lock()
        # By the low bits of a word's key: false where it cannot be in the map.
        self._maybe = np.full(1 << _MAYBE_BITS, not empty)

    def close_all(self, inodes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Hold every access to these inodes; the same inodes. Raises ``CapabilityMissing`` where the map has no room left."""
        with self._lock:
            for first in range(0, len(inodes), _AT_ONCE):
                self._close(*_words(inodes[first : first + _AT_ONCE]))
        return inodes

    def _close(self, keys: NDArray[np.uint64], bits: NDArray[np.uint64]) -> None:
        values = np.zeros((len(keys), 3), np.uint64)
        values[:, 0] = values[:, 1] = bits
        places = keys & np.uint64((1 << _MAYBE_BITS) - 1)
        for index in np.flatnonzero(self._maybe[places]).tolist():
            if there := self._map.get(keys[index].tobytes()):
                values[index] |= np.frombuffer(there, np.uint64)
        self._maybe[places] = True
        try:
            self._map.put_many(keys.tobytes(), values.tobytes(), len(keys))
        except OSError as error:
            raise CapabilityMissing(
                f"The kernel cannot guard that many placeholders ({error.strerror}).", "Use --interceptor fanotify."
            ) from error

    def open(self, inode: int, gate: Gate) -> None:
        """Let readers (or all) pass."""
        with self._lock:
            self._clear((inode // _WORD_BITS).to_bytes(8, "little"), ~(1 << inode % _WORD_BITS), gate)

    def by_range(self, inode: int) -> None:
        """From now on who opens it goes on, and each access waits for its pages."""
        key, bit = (inode // _WORD_BITS).to_bytes(8, "little"), 1 << inode % _WORD_BITS
        with self._lock:
            word = Word(*self._layout.packed.unpack(self._map.get(key) or bytes(self._layout.packed.size)))
            self._maybe[inode // _WORD_BITS & ((1 << _MAYBE_BITS) - 1)] = True
            self._map.put(key, self._layout.packed.pack(word.readers & ~bit, word.writers & ~bit, word.ranged | bit))

    def _clear(self, key: bytes, mask: int, gate: Gate) -> None:
        there = self._map.get(key)
        if there is None:
            return
        word = Word(*self._layout.packed.unpack(there))
        writers = word.writers & mask if gate is Gate.ALL else word.writers
        left = Word(word.readers & mask, writers, word.ranged & mask if gate is Gate.ALL else word.ranged)
        if not any(left):
            self._map.remove(key)
        elif left != word:
            self._map.put(key, self._layout.packed.pack(*left))

    def open_all(self, inodes: NDArray[np.uint64]) -> None:
        """Let everybody pass at these, a word at a time."""
        keys, values = _words(inodes)
        with self._lock:
            for key, bits in zip(keys.tolist(), values.tolist(), strict=True):
                self._clear(key.to_bytes(8, "little"), ~bits, Gate.ALL)

    def closed_among(self, inodes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Those of these at which somebody would wait."""
        keys, values = _words(inodes)
        closed: list[int] = []
        for key, bits in zip(keys.tolist(), values.tolist(), strict=True):
            if there := self._map.get(key.to_bytes(8, "little")):
                word = Word(*self._layout.packed.unpack(there))
                bits &= word.readers | word.writers | word.ranged
                closed += [key * _WORD_BITS + bit for bit in range(_WORD_BITS) if bits >> bit & 1]
        return np.array(closed, np.uint64)

    def is_closed(self, inode: int, intent: Intent) -> bool:
        """Whether who wants this would wait; of a file by range: may have to."""
        there = self._map.get((inode // _WORD_BITS).to_bytes(8, "little"))
        if there is None:
            return False
        word = Word(*self._layout.packed.unpack(there))
        return bool(((word.readers if intent is Intent.READ else word.writers) | word.ranged) >> inode % _WORD_BITS & 1)


def _words(inodes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The keys of their words in order, and their bits in each."""
    if not len(inodes):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    first, last = int(inodes.min()) // _WORD_BITS, int(inodes.max()) // _WORD_BITS
    if (last - first + 1) * _WORD_BITS <= _DENSE * len(inodes):
        # A byte for each number of the whole span: several times as fast as to sort them.
        marks = np.zeros((last - first + 1) * _WORD_BITS, np.uint8)
        marks[(inodes - np.uint64(first * _WORD_BITS)).view(np.int64)] = 1
        span = np.packbits(marks, bitorder="little").view(np.uint64)
        used = np.flatnonzero(span)
        return used.astype(np.uint64) + np.uint64(first), span[used]
    order = np.sort(inodes)
    words = order >> np.uint64(6)
    bits = np.uint64(1) << (order & np.uint64(_WORD_BITS - 1))
    starts = np.flatnonzero(np.concatenate(([True], words[1:] != words[:-1])))
    return words[starts], np.bitwise_or.reduceat(bits, starts)


def own_files(territory: Territory) -> Iterator[int]:
    """Inode numbers of the agent's own files that are on the file system of the target, and no placeholders."""
    device = os.stat(territory.root).st_dev
    for directory in filter(None, (territory.run_dir, territory.state_dir)):
        for path in Path(directory).iterdir():
            # It may be gone, or on a file system that has no such attributes.
            with contextlib.suppress(OSError):
                found = path.lstat()
                if found.st_dev == device and MARKER not in os.listxattr(path, follow_symlinks=False):
                    yield found.st_ino


class Rows:
    """Row -> inode number, in a file of one 64-bit number a row, so that the next agent has it, too."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def clear(self) -> None:
        """Forget all, whoever left it."""
        os.ftruncate(self._fd, 0)

    def add(self, pairs: Iterable[tuple[int, int]]) -> NDArray[np.uint64]:
        """Remember ``(row, inode number)`` pairs whose number is known (not 0); returns the inode numbers."""
        table = np.fromiter(itertools.chain.from_iterable(pair for pair in pairs if pair[1]), np.uint64)
        rows, inodes = table[0::2].astype(np.int64), table[1::2].copy()
        if not len(rows):
            return inodes
        first, last = int(rows.min()), int(rows.max())
        if (last - first + 1) * _ROW_BYTES > _SPARSE * len(rows):
            for row, inode in zip(rows.tolist(), inodes.tolist(), strict=True):
                os.pwrite(self._fd, inode.to_bytes(_ROW_BYTES, "little"), row * _ROW_BYTES)
            return inodes
        length = (last - first + 1) * _ROW_BYTES
        block = np.frombuffer(os.pread(self._fd, length, first * _ROW_BYTES).ljust(length, b"\0"), np.uint64).copy()
        block[rows - first] = inodes
        os.pwrite(self._fd, block.tobytes(), first * _ROW_BYTES)
        return inodes

    def inodes(self, rows: Sequence[int]) -> NDArray[np.uint64]:
        """The inode numbers of those rows that were added."""
        found = (self.inode(row) for row in rows)
        return np.fromiter((inode for inode in found if inode is not None), np.uint64)

    def find(self, inodes: NDArray[np.uint64]) -> list[tuple[int, int]]:
        """The ``(row, inode number)`` pairs of these numbers, by a look at all rows."""
        table = np.fromfile(self._path, np.uint64)
        return [(row, int(table[row])) for row in np.flatnonzero(np.isin(table, inodes)).tolist()]

    def inode(self, row: int) -> int | None:
        """The inode number of a row, ``None`` where none was added."""
        return int.from_bytes(os.pread(self._fd, _ROW_BYTES, row * _ROW_BYTES), "little") or None

    def close(self) -> None:
        """Give the descriptor back; the file stays."""
        os.close(self._fd)

    def remove(self) -> None:
        """Nobody will want it any more."""
        Path(self._path).unlink(missing_ok=True)
