"""The disk's side: a file system in user space with some files of fixed size, spoken to through /dev/fuse as it is.

``python -m tests.torture.power.server FUSE LOG POSITION IMAGE...``: descriptors of the mounted /dev/fuse, of the log and of a
page that is shared with who started us; then the images that are served as ``disk0``, ``disk1``, ...

Protocol: Linux ``include/uapi/linux/fuse.h``, 7.31.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import struct
import sys

from tests.torture.power.journal import FLUSH, WRITE, record

_HEADER = struct.Struct("<IIQQIIIHH")
_REPLY = struct.Struct("<IiQ")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_VALID = struct.Struct("<QII")
_OPEN_OUT = struct.Struct("<QII")
_IO = struct.Struct("<QQIIQII")
_STATFS = struct.Struct("<QQQQQIIII24x")
LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE_, STATFS, RELEASE, FSYNC, FLUSH_, INIT = 1, 2, 3, 14, 15, 16, 17, 18, 20, 25, 26
OPENDIR, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET = 27, 29, 36, 38, 42
_SILENT = (FORGET, BATCH_FORGET, INTERRUPT)
_MAX_WRITE = 1 << 20
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_DIRECT_IO = 1
_ROOT = 1
_FOREVER_S = 1 << 30
POSITION, FAILING = struct.Struct("<Q"), struct.Struct("<8xQ")
"""The shared page: how many records there are; which requests fail (bits of ``FAIL_*``)."""
FAIL_READS, FAIL_WRITES, FAIL_FLUSHES, FAIL_BAD, FAIL_FULL = 1, 2, 4, 8, 16
BAD = b"no block of the disk can take this: "
"""What ``FAIL_BAD`` (EIO) and ``FAIL_FULL`` (ENOSPC, as of thin storage) are about: writes with these bytes in them."""


class Disk:
    """One image."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.fd).st_size


class Server:
    """Answers one request after the other, so that the log has one order."""

    def __init__(self, fuse: int, log: int, shared: int, images: list[str]) -> None:
        self._fuse = fuse
        self._log = log
        self._page = mmap.mmap(shared, mmap.PAGESIZE)
        self._disks = [Disk(path) for path in images]
        self._count = 0

    def run(self) -> None:
        """Until it is unmounted."""
        buffer = bytearray(_MAX_WRITE + (1 << 16))
        view = memoryview(buffer)
        while True:
            try:
                length = os.readv(self._fuse, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                raise
            _, code, unique, node, *_ = _HEADER.unpack_from(buffer)
            if code in _SILENT:
                continue
            try:
                body = self._answer(code, node, view[_HEADER.size : length])
            except OSError as error:
                self._reply(unique, -(error.errno or errno.EIO), b"")
            else:
                self._reply(unique, 0, body)

    def _reply(self, unique: int, error: int, body: bytes) -> None:
        # Gone: who asked was interrupted, or it is being unmounted.
        with contextlib.suppress(FileNotFoundError):
            os.writev(self._fuse, [_REPLY.pack(_REPLY.size + len(body), error, unique), body])

    def _answer(self, code: int, node: int, body: memoryview) -> bytes:
        if code == READ:
            _, offset, size, *_ = _IO.unpack_from(body)
            self._fail(FAIL_READS)
            return os.pread(self._disks[node - 2].fd, size, offset)
        if code == WRITE_:
            _, offset, size, *_ = _IO.unpack_from(body)
            return self._write(node - 2, offset, body[_IO.size : _IO.size + size])
        if code == FSYNC:
            self._fail(FAIL_FLUSHES)
            self._note(record(FLUSH, node - 2, 0, 0), b"")
            return b""
        return self._other(code, node, body)

    def _write(self, disk: int, offset: int, data: memoryview) -> bytes:
        self._fail(FAIL_WRITES)
        if FAILING.unpack_from(self._page)[0] & (FAIL_BAD | FAIL_FULL) and BAD in bytes(data):
            self._fail(FAIL_BAD)
            self._fail(FAIL_FULL, errno.ENOSPC)
        os.pwrite(self._disks[disk].fd, data, offset)
        self._note(record(WRITE, disk, offset, len(data)), data)
        return struct.pack("<II", len(data), 0)

    def _note(self, head: bytes, data: bytes | memoryview) -> None:
        """In the log before the kernel hears of it: who reads the position after fsync(2) finds this in front of it."""
        os.writev(self._log, [head, data])
        self._count += 1
        POSITION.pack_into(self._page, 0, self._count)

    def _fail(self, kind: int, code: int = errno.EIO) -> None:
        if FAILING.unpack_from(self._page)[0] & kind:
            raise OSError(code, "as wished")

    def _other(self, code: int, node: int, body: memoryview) -> bytes:
        if code == INIT:
            _, minor = struct.unpack_from("<II", body)
            flags = _BIG_WRITES | _MAX_PAGES
            return _INIT_OUT.pack(7, min(minor, 31), 0, flags, 64, 48, _MAX_WRITE, 1, _MAX_WRITE // mmap.PAGESIZE, 0, 0)
        if code == LOOKUP:
            number = self._number(bytes(body).rstrip(b"\0"))
            return _ENTRY.pack(number + 2, 0, _FOREVER_S, _FOREVER_S, 0, 0) + self._attributes(number + 2)
        if code == GETATTR:
            return _ATTR_VALID.pack(_FOREVER_S, 0, 0) + self._attributes(node)
        if code in (OPEN, OPENDIR):
            return _OPEN_OUT.pack(node, _DIRECT_IO if code == OPEN else 0, 0)
        if code == STATFS:
            return _STATFS.pack(0, 0, 0, 0, 0, mmap.PAGESIZE, 255, mmap.PAGESIZE, 0)
        if code in (RELEASE, RELEASEDIR, FLUSH_, DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "not for a disk")

    def _number(self, name: bytes) -> int:
        for number in range(len(self._disks)):
            if name == b"disk%d" % number:
                return number
        raise FileNotFoundError(errno.ENOENT, "no such disk")

    def _attributes(self, node: int) -> bytes:
        size, mode = (0, stat.S_IFDIR | 0o755) if node == _ROOT else (self._disks[node - 2].size, stat.S_IFREG | 0o600)
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def main(arguments: list[str]) -> None:
    """See above."""
    fuse, log, shared = (int(word) for word in arguments[:3])
    Server(fuse, log, shared, arguments[3:]).run()


if __name__ == "__main__":
    main(sys.argv[1:])
