"""The log of a disk: records of a kind, a disk, an offset and a length, each with its bytes; and images made of it."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

WRITE, FLUSH = 1, 2
_RECORD = struct.Struct("<BxHIQ")
_BLOCK_BYTES = 4096


def record(kind: int, disk: int, offset: int, length: int) -> bytes:
    """The head of a record."""
    return _RECORD.pack(kind, disk, length, offset)


class Entry(NamedTuple):
    """A record; ``at`` is where its bytes lie in the log."""

    kind: int
    disk: int
    offset: int
    length: int
    at: int


class Journal:
    """A complete log."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.entries: list[Entry] = []
        at = 0
        while head := os.pread(self._fd, _RECORD.size, at):
            kind, disk, length, offset = _RECORD.unpack(head)
            at += _RECORD.size
            self.entries.append(Entry(kind, disk, offset, length, at))
            at += length

    def data(self, entry: Entry) -> bytes:
        """Its bytes."""
        return os.pread(self._fd, entry.length, entry.at)

    def flushes(self) -> list[int]:
        """The positions right behind each flush."""
        return [number + 1 for number, entry in enumerate(self.entries) if entry.kind == FLUSH]


class Images:
    """The disks as a power cut leaves them, cut after cut in the order of the log."""

    def __init__(self, journal: Journal, empty: Sequence[Path], cuts: Sequence[Path]) -> None:
        """``empty`` are the disks as they were before the log, and are changed; ``cuts`` is where images are made."""
        self._journal = journal
        self._durable = empty
        self._cuts = cuts
        self._applied = [0] * len(empty)

    def cut(self, position: int, dice: random.Random, kept: float) -> str:
        """Cut in front of this record: all that was flushed is there, of the rest each block with probability ``kept``."""
        words = []
        for disk, (durable, image) in enumerate(zip(self._durable, self._cuts, strict=True)):
            flushed = self._flushed(disk, position)
            self._apply(durable, disk, self._applied[disk], flushed)
            self._applied[disk] = max(flushed, self._applied[disk])
            # A new file each time. Where anybody's mount namespace still has the last cut, mount(8) takes its loop device
            # again, and with it a file system with the memory of the last cut and the blocks of this one.
            image.unlink(missing_ok=True)
            copy_sparse(durable, image)
            some, whole = self._keep(image, disk, flushed, position, dice, kept)
            words.append(f"disk {disk}: flushed before {flushed}, and {some} of {whole} blocks")
        return "; ".join(words)

    def _flushed(self, disk: int, position: int) -> int:
        for number in range(position - 1, -1, -1):
            entry = self._journal.entries[number]
            if entry.kind == FLUSH and entry.disk == disk:
                return number
        return 0

    def _apply(self, durable: Path, disk: int, first: int, end: int) -> None:
        with open(durable, "r+b") as file:
            for entry in self._journal.entries[first:end]:
                if entry.kind == WRITE and entry.disk == disk:
                    os.pwrite(file.fileno(), self._journal.data(entry), entry.offset)

    def _keep(self, image: Path, disk: int, first: int, end: int, dice: random.Random, kept: float) -> tuple[int, int]:
        some = whole = 0
        with open(image, "r+b") as file:
            for entry in self._journal.entries[first:end]:
                if entry.kind == WRITE and entry.disk == disk:
                    data = self._journal.data(entry)
                    for at in range(0, entry.length, _BLOCK_BYTES):
                        whole += 1
                        if dice.random() < kept:
                            some += 1
                            os.pwrite(file.fileno(), data[at : at + _BLOCK_BYTES], entry.offset + at)
        return some, whole


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, holes as holes."""
    with open(source, "rb") as read, open(target, "wb") as written:
        size = os.fstat(read.fileno()).st_size
        written.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(read.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(read.fileno(), at, os.SEEK_HOLE)
            os.lseek(written.fileno(), at, os.SEEK_SET)
            while at < end:
                at += os.sendfile(written.fileno(), read.fileno(), at, end - at)
