"""What a thread that the kernel holds is about to do with a file that is restored by range, read from ``/proc``.

A wrong answer must never be a harmless one: whatever is not known for sure is ``Intent.WHOLE`` (``WRITE`` of an access), for
which the file is finished whole. Numbers of system calls of 32-bit tasks that mean something else here never read, write or
map a file.

Not recognised: a descriptor that another thread replaces while the mmap(2) of it is held; and a request of io_uring that was
linked to another one and begins while its thread leaves read(2). (It gets its range all the same; were it a write, the file
would not be noted as written to.)
"""

from __future__ import annotations

import os
import platform
import struct
from typing import NamedTuple

from active_restore.linux import tasks
from active_restore.model import TO_THE_END, Intent, whole_folios

_MAP_KINDS = 0x3
_MAP_PRIVATE = 0x2
# They hand files to the kernel, which then reads and writes them past every hook (loop devices, swap, moved extents).
_ATTACHERS = frozenset(
    {b"losetup", b"mount", b"busybox", b"kpartx", b"udisksd", b"systemd-dissec", b"swapon", b"e4defrag", b"xfs_fsr"}
)


class _Numbers(NamedTuple):
    reads: frozenset[int]
    writes: frozenset[int]
    mmap: int
    sendfile: int
    splice: int
    copy_file_range: int
    io_submit: int
    opens: dict[int, int]


_NUMBERS = {
    "x86_64": _Numbers(
        frozenset({0, 17, 19, 295, 327}), frozenset({1, 18, 20, 296, 328}), 9, 40, 275, 326, 209, {2: 1, 257: 2, 304: 2}
    ),
    "aarch64": _Numbers(
        frozenset({63, 67, 65, 69, 286}), frozenset({64, 68, 66, 70, 287}), 222, 71, 76, 285, 2, {56: 2, 265: 2}
    ),
}
_HERE = _NUMBERS.get(platform.machine(), _Numbers(frozenset(), frozenset(), -2, -2, -2, -2, -2, {}))
# The same on every machine.
_NO_CALL = -1
_IO_URING_ENTER = 426
_OPENAT2 = 437
_OPEN_HOW = struct.Struct("=Q")


def open_intent(tid: int) -> Intent:
    """Of an open: READ, CHANGE (it will write), TRUNCATE, or WHOLE for exec, for programs that hand files to the kernel
    and for what cannot be known.
    """
    try:
        words = tasks.system_call(tid)
        number = int(words[0])
        flags = _flags_of_openat2(tid, words) if number == _OPENAT2 else int(words[1 + _HERE.opens[number]], 16)
        if tasks.read_proc(f"/proc/{tid}/comm").rstrip(b"\n") in _ATTACHERS:
            return Intent.WHOLE
    except (OSError, KeyError, ValueError, IndexError, struct.error):
        return Intent.WHOLE
    intent = tasks.intent_of_flags(flags)
    return Intent.CHANGE if intent is Intent.WRITE else intent


def _flags_of_openat2(tid: int, words: list[bytes]) -> int:
    """They lie in the task's memory. A thread of it that changes them in this very moment could only hide O_TRUNC from us, and
    would get back the content that it takes from itself.
    """
    fd = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(_OPEN_HOW.unpack(os.pread(fd, _OPEN_HOW.size, int(words[3], 16)))[0])
    finally:
        os.close(fd)


def access(tid: int, file: int, span: tuple[int, int], *, windows: bool) -> tuple[Intent, tuple[int, int]]:
    """What a thread wants that is held in a pre-content access to ``span`` (offset, length) of the file behind ``file``.

    Of a mapping that is all that it may ever show without anybody being asked; with ``windows`` what it shows now, as somebody
    sees to it that its task is stopped when it shows more.
    """
    try:
        words = tasks.system_call(tid)
        number = int(words[0])
        if number == _HERE.mmap:
            return _of_mapping(tid, [int(word, 16) for word in words[1:7]], windows=windows and tasks.can_be_stopped(tid))
        return _of_transfer(tid, file, number, words), span
    except (OSError, ValueError, IndexError):
        return Intent.WRITE, span


def _of_mapping(tid: int, arguments: list[int], *, windows: bool) -> tuple[Intent, tuple[int, int]]:
    """mremap(2) makes it longer, and remap_file_pages(2) moves one that is shared and writable to any place of the file.

    The offset is that of the call: kernels before 6.18 tell it in pages (fixed by their commit 28bba2c2935e).
    """
    is_read = arguments[3] & _MAP_KINDS == _MAP_PRIVATE or not _is_writable(tid, arguments[4])
    intent = Intent.READ if is_read else Intent.MAP
    if windows:
        shown = arguments[5], arguments[1]
        return intent, shown if is_read else whole_folios(*shown)
    return intent, (arguments[5] if is_read else 0, TO_THE_END)


def _of_transfer(tid: int, file: int, number: int, words: list[bytes]) -> Intent:
    if number in _HERE.reads:
        return Intent.READ
    if number in _HERE.writes:
        return Intent.CHANGE
    # What needs longer than reading and writing, like fallocate(2), io_uring leaves to its workers.
    if number in (_HERE.io_submit, _IO_URING_ENTER):
        return _of_request(tid, Intent.ACCESS)
    if number == _NO_CALL:
        return _of_request(tid, Intent.RING)
    return _of_two_files(tid, file, number, [int(word, 16) for word in words[1:7]])


def _of_request(tid: int, unknown: Intent) -> Intent:
    """The functions of io_uring that lie on the thread's stack tell, where the kernel shows it (CONFIG_STACKTRACE)."""
    try:
        stack = tasks.read_proc(f"/proc/{tid}/stack")
    except OSError:
        return unknown
    if b"] io_write+" in stack:
        return Intent.CHANGE
    return Intent.READ if b"] io_read+" in stack else unknown


def _of_two_files(tid: int, file: int, number: int, arguments: list[int]) -> Intent:
    if number == _HERE.sendfile:
        return Intent.CHANGE if _is_same(tid, arguments[0], file) else Intent.READ
    if number == _HERE.splice:
        return Intent.CHANGE if _is_same(tid, arguments[2], file) else Intent.READ
    if number == _HERE.copy_file_range:
        # As the target it may get holes, by reflink: those look like missing pages to whoever comes after a crash.
        return Intent.WRITE if _is_same(tid, arguments[2], file) else Intent.READ
    return Intent.WRITE


def _is_same(tid: int, fd: int, file: int) -> bool:
    """Whether the descriptor ``fd`` of that task and ours are of one inode."""
    theirs, ours = os.stat(f"/proc/{tid}/fd/{fd & 0xFFFFFFFF}"), os.fstat(file)
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _is_writable(tid: int, fd: int) -> bool:
    info = tasks.read_proc(f"/proc/{tid}/fdinfo/{fd & 0xFFFFFFFF}")
    flags = next(int(line.split()[1], 8) for line in info.splitlines() if line.startswith(b"flags:"))
    return flags & os.O_ACCMODE != os.O_RDONLY
