"""Reads and writes by io_uring, aio and openat2, for which Python has no functions.

``rings.py WAY WHAT PATH OFFSET LENGTH``: WAY is ``aio``, ``inline``, ``worker`` (of io_uring) or ``sqpoll``, WHAT ``read``,
``write`` (of n's), ``direct`` (O_DIRECT, of all pages around, none of them cached) or ``punch``; prints what was read.
Sources: io_uring(7), io_uring_setup(2), io_submit(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys

_SETUP, _ENTER = 425, 426
_IO_SETUP, _IO_GETEVENTS, _IO_SUBMIT = 206, 208, 209
_OPENAT2 = 437
_FALLOCATE, _READ, _WRITE = 17, 22, 23
_PUNCH = 3
_SQPOLL, _GETEVENTS, _WAKEUP = 2, 1, 2
_ASYNC = 16
_PAGE = 4096
_SQE = struct.Struct("=BBHiQQIIQ24x")
_IOCB = struct.Struct("=QIIHhIQQq16x")
_EVENT = struct.Struct("=QQqq")
_CQE = struct.Struct("=QiI")
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def _call(number: int, *arguments: object) -> int:
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


class _Requests:
    """What one request at a time reads and writes."""

    READ, WRITE = _READ, _WRITE

    def _request(self, opcode: int, fd: int, address: int, length: int, offset: int) -> int:
        raise NotImplementedError

    def read(self, fd: int, length: int, offset: int) -> bytes:
        buffer = ctypes.create_string_buffer(max(length, 1))
        got = self._request(self.READ, fd, ctypes.addressof(buffer), length, offset)
        return buffer.raw[:got]

    def write(self, fd: int, data: bytes, offset: int) -> int:
        return self.write_from(fd, bytearray(data or b"x"), offset, len(data))

    def write_from(self, fd: int, data: bytearray | mmap.mmap, offset: int, length: int = -1) -> int:
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        length = len(data) if length < 0 else length
        return self._request(self.WRITE, fd, address, length, offset)


class Ring(_Requests):
    """One request at a time, done by the task itself, by a worker or by the kernel's own thread (``sqpoll``)."""

    def __init__(self, way: str) -> None:
        self._sqpoll = way == "sqpoll"
        self._flags = _ASYNC if way == "worker" else 0
        params = ctypes.create_string_buffer(struct.pack("=IIIII", 0, 0, _SQPOLL if self._sqpoll else 0, 0, 2000), 120)
        self._fd = _call(_SETUP, ctypes.c_uint(4), params)
        sq, cq = struct.unpack_from("=7I", params, 40), struct.unpack_from("=6I", params, 80)
        self._sq_tail, self._sq_mask, self._array = sq[1], sq[2], sq[6]
        self._cq_head, self._cq_tail, self._cq_mask, self._cqes = cq[0], cq[1], cq[2], cq[5]
        self._sq = mmap.mmap(self._fd, sq[6] + 4 * 4, offset=0)
        self._cq = mmap.mmap(self._fd, cq[5] + 8 * _CQE.size, offset=0x8000000)
        self._sqes = mmap.mmap(self._fd, 4 * 64, offset=0x10000000)

    def _request(self, opcode: int, fd: int, address: int, length: int, offset: int) -> int:
        tail = _word(self._sq, self._sq_tail)
        at = tail & _word(self._sq, self._sq_mask)
        self._sqes[at * 64 : at * 64 + 64] = _SQE.pack(opcode, self._flags, 0, fd, offset, address, length, 0, 0)
        self._sq[self._array + 4 * at : self._array + 4 * at + 4] = at.to_bytes(4, "little")
        # The system call makes it visible in this order.
        self._sq[self._sq_tail : self._sq_tail + 4] = (tail + 1).to_bytes(4, "little")
        head = _word(self._cq, self._cq_head)
        flags = _GETEVENTS | (_WAKEUP if self._sqpoll else 0)
        submit = 1
        while head == _word(self._cq, self._cq_tail):
            submit -= _call(
                _ENTER, self._fd, ctypes.c_uint(submit), ctypes.c_uint(1), ctypes.c_uint(flags), None, ctypes.c_size_t(0)
            )
        result = _CQE.unpack_from(self._cq, self._cqes + _CQE.size * (head & _word(self._cq, self._cq_mask)))[1]
        self._cq[self._cq_head : self._cq_head + 4] = (head + 1).to_bytes(4, "little")
        return _checked(result)

    def punch(self, fd: int, length: int, offset: int) -> None:
        self._request(_FALLOCATE, fd, length, _PUNCH, offset)

    def close(self) -> None:
        for view in (self._sq, self._cq, self._sqes):
            view.close()
        os.close(self._fd)


def _word(view: mmap.mmap, at: int) -> int:
    return int.from_bytes(view[at : at + 4], "little")


class Aio(_Requests):
    """As ``Ring``, by io_submit(2)."""

    READ, WRITE = 0, 1

    def __init__(self) -> None:
        self._context = ctypes.c_ulong(0)
        _call(_IO_SETUP, ctypes.c_uint(4), ctypes.byref(self._context))

    def _request(self, opcode: int, fd: int, address: int, length: int, offset: int) -> int:
        iocb = ctypes.create_string_buffer(_IOCB.pack(0, 0, 0, opcode, 0, fd, address, length, offset), _IOCB.size)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(iocb))
        if _call(_IO_SUBMIT, self._context, ctypes.c_long(1), pointers) != 1:
            raise OSError("nothing was submitted")
        event = ctypes.create_string_buffer(_EVENT.size)
        while _call(_IO_GETEVENTS, self._context, ctypes.c_long(1), ctypes.c_long(1), event, None) != 1:
            pass
        return _checked(_EVENT.unpack(event.raw)[2])

    def close(self) -> None:
        _call(207, self._context)


def open2(path: str, flags: int) -> int:
    """openat2(2)."""
    how = ctypes.create_string_buffer(struct.pack("=QQQ", flags, 0, 0), 24)
    return _call(_OPENAT2, ctypes.c_int(-100), os.fsencode(path), how, ctypes.c_size_t(24))


def main() -> None:
    way, what, path, offset, length = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
    ring = Aio() if way == "aio" else Ring(way)
    fd = os.open(path, os.O_RDONLY if what == "read" else os.O_RDWR)
    if what == "read":
        sys.stdout.buffer.write(ring.read(fd, length, offset))
    elif what == "write":
        assert ring.write(fd, b"n" * length, offset) == length
    elif what == "direct":
        low, high = offset - offset % _PAGE, offset + length + -(offset + length) % _PAGE
        with mmap.mmap(-1, high - low) as buffer:
            buffer[:] = b"n" * (high - low)
            # Else io_uring leaves it to a worker.
            os.pread(fd, high - low, low)
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            fd = os.open(path, os.O_RDWR | os.O_DIRECT)
            assert ring.write_from(fd, buffer, low) == high - low
    elif isinstance(ring, Ring):
        ring.punch(fd, length, offset)
    ring.close()


if __name__ == "__main__":
    main()
