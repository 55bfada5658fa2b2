"""What the exerciser does to a half-restored file, one operation at a time, and the model that each is checked against.

The model is in memory. With BPF nobody may have a ring: who has one opens whole files.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import TYPE_CHECKING

from tests.ranges.maps import BPF, doubled, elsewhere, grown, mapped
from tests.ranges.rings import Aio, Ring, open2

if TYPE_CHECKING:
    import random

PAGE = 4096
STRIPE = 37_123
MOST = 70_000
_KEEP_SIZE, _PUNCH, _ZERO = 1, 2, 16
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Wrong(Exception):
    """The file is not as the model."""


class File:
    """A file and its model. ``limits`` are the bytes that may be touched; size-changing operations need all of them."""

    # With BPF, whoever has a ring opens whole files, and aio waits for them.
    inline = None if BPF else Ring("inline")
    rings: tuple[Ring | Aio, ...] = (Aio(),) if inline is None else (inline, Ring("worker"), Aio())

    def __init__(self, path: str, content: bytes, dice: random.Random, stripes: tuple[int, int] | None = None) -> None:
        self.path, self.model = path, bytearray(content)
        self.dice, self.stripes = dice, stripes
        self.next = 0
        self.progress = 0.0
        self.fd, self.flags = -1, 0
        self.gone = False
        self.reopen()

    def reopen(self, flags: int | None = None) -> None:
        if self.gone:
            return
        if self.fd >= 0:
            os.close(self.fd)
        self.flags = self.dice.choice((os.O_RDONLY, os.O_RDWR, os.O_RDWR)) if flags is None else flags
        self.fd = self.dice.choice((os.open, open2))(self.path, self.flags)

    def writable(self) -> bool:
        if self.flags == os.O_RDONLY and not self.gone:
            self.reopen(os.O_RDWR)
        return self.flags != os.O_RDONLY

    def span(self) -> tuple[int, int]:
        """Some bytes that we may touch: offset and length."""
        size = len(self.model)
        length = self.dice.choice((1, 100, PAGE, 3 * PAGE, self.dice.randint(1, MOST)))
        # The files stay half restored to the end: what was never touched begins at a frontier that goes forward slowly.
        frontier = int(size * self.progress) + 1
        if self.dice.random() < 0.4 and self.next < frontier:
            offset = self.next
        elif self.dice.random() < 0.5:
            offset = self.dice.randrange(max(min(frontier, size), 1))
        else:
            offset = max(min(frontier, size) - self.dice.randint(1, 1 << 20), 0)
        if self.stripes:
            number, of = self.stripes
            stripe = offset // STRIPE
            stripe += number - stripe % of
            if stripe * STRIPE >= size:
                stripe = number
            offset = stripe * STRIPE + offset % STRIPE
            length = min(length, (stripe + 1) * STRIPE - offset)
        length = max(min(length, size - offset), 0)
        self.next = offset + length
        return offset, length

    def check(self, data: bytes | bytearray | memoryview, offset: int, how: str) -> None:
        wanted = self.model[offset : offset + len(data)]
        if data != wanted or len(data) != len(wanted):
            at = next((n for n, (a, b) in enumerate(zip(data, wanted, strict=False)) if a != b), min(len(data), len(wanted)))
            zeros = bytes(data[at : at + 64]).count(0)
            raise Wrong(f"{self.path}: {how} at {offset} of {len(data)}: differs from {offset + at} on; {zeros} of 64 are zero")

    # Reading.
    def pread(self) -> None:
        offset, length = self.span()
        self.check(os.pread(self.fd, length, offset), offset, "pread")

    def readv(self) -> None:
        offset, length = self.span()
        buffers = [bytearray(length // 2), bytearray(length - length // 2)]
        os.preadv(self.fd, buffers, offset)
        self.check(buffers[0] + buffers[1], offset, "preadv")

    def read_direct(self) -> None:
        offset, length = self.span()
        low, high = offset - offset % PAGE, offset + length + -(offset + length) % PAGE
        with mmap.mmap(-1, max(high - low, PAGE)) as buffer:
            fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_DIRECT)
            try:
                got = os.preadv(fd, [buffer], low)
            finally:
                os.close(fd)
            self.check(buffer[offset - low : min(offset - low + length, got)], offset, "O_DIRECT")

    def read_mapped(self) -> None:
        offset, length = self.span()
        if length:
            low = offset - offset % mmap.ALLOCATIONGRANULARITY
            kind = self.dice.choice((mmap.MAP_SHARED, mmap.MAP_PRIVATE))
            view = self.dice.choice((mapped, grown, doubled))(self.fd, low, offset + length - low, kind)
            self.check(view[offset - low :], offset, "mmap")

    def read_elsewhere(self) -> None:
        """By a mapping of another page."""
        if self.writable():
            offset, length = self.span()
            if length:
                low = offset - offset % PAGE
                end = min(offset + length, low + PAGE)
                with elsewhere(self.fd, self.dice.randrange(len(self.model)) // PAGE * PAGE, low) as view:
                    self.check(bytes(view[offset - low : end - low]), offset, "remap_file_pages")

    def seek(self) -> None:
        """What is said to be there is read. (Of what is missing it is said that it is a hole.)"""
        offset, length = self.span()
        if length:
            try:
                begin = os.lseek(self.fd, offset, os.SEEK_DATA)
                end = os.lseek(self.fd, begin, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            if begin < offset + length:
                end = min(end, offset + length)
                self.check(os.pread(self.fd, end - begin, begin), begin, "SEEK_DATA")

    def read_ring(self) -> None:
        offset, length = self.span()
        self.check(self.dice.choice(self.rings).read(self.fd, length, offset), offset, "aio or io_uring")

    def send(self) -> None:
        offset, length = self.span()
        out = os.memfd_create("out")
        try:
            done = 0
            while done < length and (count := os.sendfile(out, self.fd, offset + done, length - done)):
                done += count
            self.check(os.pread(out, length, 0), offset, "sendfile")
        finally:
            os.close(out)

    def splice(self) -> None:
        offset, length = self.span()
        length = min(length, 60_000)
        reading, writing = os.pipe()
        try:
            data = b""
            while len(data) < length and os.splice(self.fd, writing, length - len(data), offset_src=offset + len(data)):
                data += os.read(reading, 65536)
            self.check(data, offset, "splice")
        finally:
            os.close(reading)
            os.close(writing)

    def copy_out(self) -> None:
        offset, length = self.span()
        out = os.open(os.path.dirname(self.path), os.O_TMPFILE | os.O_RDWR)
        try:
            done = 0
            while done < length and (count := os.copy_file_range(self.fd, out, length - done, offset + done, done)):
                done += count
            self.check(os.pread(out, length, 0), offset, "copy_file_range")
        finally:
            os.close(out)

    # Writing within the size.
    def _fresh(self, length: int) -> bytes:
        return self.dice.randbytes(length)

    def pwrite(self) -> None:
        if self.writable():
            offset, length = self.span()
            data = self._fresh(length)
            self.model[offset : offset + length] = data
            if os.pwrite(self.fd, data, offset) != length:
                raise Wrong("a short write")

    def writev(self) -> None:
        if self.writable():
            offset, length = self.span()
            data = self._fresh(length)
            self.model[offset : offset + length] = data
            os.pwritev(self.fd, [data[: length // 3], data[length // 3 :]], offset)

    def write_ring(self) -> None:
        if self.writable():
            offset, length = self.span()
            data = self._fresh(length)
            self.model[offset : offset + length] = data
            if self.dice.choice(self.rings).write(self.fd, data, offset) != length:
                raise Wrong("a short write by aio or io_uring")

    def write_mapped(self) -> None:
        if self.writable():
            offset, length = self.span()
            if length:
                data = self._fresh(length)
                low = offset - offset % mmap.ALLOCATIONGRANULARITY
                with mmap.mmap(self.fd, offset + length - low, offset=low) as view:
                    self.check(view[offset - low :], offset, "mmap before a store")
                    view[offset - low :] = data
                self.model[offset : offset + length] = data

    def write_elsewhere(self) -> None:
        """By a mapping of another page."""
        if self.writable():
            offset, length = self.span()
            if length:
                low = offset - offset % PAGE
                end = min(offset + length, low + PAGE)
                data = self._fresh(end - offset)
                with elsewhere(self.fd, self.dice.randrange(len(self.model)) // PAGE * PAGE, low) as view:
                    self.check(bytes(view[offset - low : end - low]), offset, "remap_file_pages before a store")
                    view[offset - low : end - low] = data
                self.model[offset:end] = data

    def splice_in(self) -> None:
        if self.writable():
            offset, length = self.span()
            data = self._fresh(min(length, 60_000))
            reading, writing = os.pipe()
            try:
                os.write(writing, data)
                done = 0
                while done < len(data):
                    done += os.splice(reading, self.fd, len(data) - done, offset_dst=offset + done)
            finally:
                os.close(reading)
                os.close(writing)
            self.model[offset : offset + len(data)] = data

    # Of a whole file.
    def sync(self) -> None:
        os.fsync(self.fd)

    def write_direct(self) -> None:
        if self.writable():
            offset, length = self.span()
            low, length = offset - offset % PAGE, length + -length % PAGE
            if low + length <= len(self.model) and length:
                with mmap.mmap(-1, length) as buffer:
                    buffer[:] = self._fresh(length)
                    fd = os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_DIRECT)
                    try:
                        os.pwritev(fd, [buffer], low)
                    finally:
                        os.close(fd)
                    self.model[low : low + length] = buffer[:]

    def append(self) -> None:
        if not self.gone:
            data = self._fresh(self.dice.randint(1, 9000))
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
            self.model += data

    def extend(self) -> None:
        if self.writable():
            gap, data = self.dice.randint(0, 20_000), self._fresh(500)
            os.pwrite(self.fd, data, len(self.model) + gap)
            self.model += bytes(gap) + data

    def truncate(self) -> None:
        size = self.dice.randint(0, len(self.model) + 10_000)
        if self.dice.random() < 0.5 and not self.gone:
            os.truncate(self.path, size)
        elif self.writable():
            os.ftruncate(self.fd, size)
        else:
            return
        del self.model[size:]
        self.model += bytes(size - len(self.model))

    def _fallocate(self, mode: int) -> tuple[int, int]:
        if self.writable():
            offset, length = self.span()
            if length and libc.fallocate(self.fd, mode, offset, length) == 0:
                return offset, length
            if length and ctypes.get_errno() != errno.EOPNOTSUPP:
                raise Wrong(f"fallocate {mode}: {os.strerror(ctypes.get_errno())}")
        return 0, 0

    def punch(self) -> None:
        offset, length = self._fallocate(_PUNCH | _KEEP_SIZE)
        self.model[offset : offset + length] = bytes(length)

    def punch_by_ring(self) -> None:
        if self.inline is not None and self.writable() and not self.gone:
            offset, length = self.span()
            if length:
                self.inline.punch(self.fd, length, offset)
                self.model[offset : offset + length] = bytes(length)

    def zero(self) -> None:
        offset, length = self._fallocate(_ZERO)
        self.model[offset : offset + length] = bytes(length)

    def allocate(self) -> None:
        self._fallocate(0)

    def copy_in(self) -> None:
        """Within the file, between ranges that do not overlap; reflinks where the file system has them."""
        if self.writable():
            offset, length = self.span()
            target = (offset + length + PAGE) % max(len(self.model) - length, 1)
            if length and (target + length <= offset or offset + length <= target):
                data = bytes(self.model[offset : offset + length])
                done = 0
                while done < length:
                    done += os.copy_file_range(self.fd, self.fd, length - done, offset + done, target + done)
                self.model[target : target + length] = data

    def rename(self) -> None:
        if not self.gone:
            os.rename(self.path, self.path + "r")
            self.path += "r"

    def unlink(self) -> None:
        if not self.gone and self.writable():
            os.unlink(self.path)
            self.gone = True

    def end(self) -> None:
        """Every byte of ours."""
        if not self.stripes:
            self.check(os.pread(self.fd, len(self.model) + 1, 0), 0, "the whole file")
            return
        number, of = self.stripes
        for start in range(number * STRIPE, len(self.model), of * STRIPE):
            self.check(os.pread(self.fd, min(STRIPE, len(self.model) - start), start), start, "the end")


READING = [File.pread] * 6 + [
    File.readv,
    File.read_direct,
    File.read_mapped,
    File.read_ring,
    File.send,
    File.splice,
    File.copy_out,
    File.read_elsewhere,
    File.seek,
]
WRITING = [File.pwrite] * 4 + [File.writev, File.write_mapped, File.write_elsewhere, File.splice_in, File.write_ring]
WHOLE = [File.append, File.extend, File.write_direct, File.rename, File.sync]
# After these the file is finished as a whole (or no name leads to it): the next one is due soon.
LAST = [File.truncate, File.punch, File.punch_by_ring, File.zero, File.allocate, File.copy_in, File.unlink]
if BPF:
    READING.remove(File.read_ring)
    WRITING.remove(File.write_ring)
    LAST[LAST.index(File.punch_by_ring)] = File.read_ring
