"""What another thread is doing, read from /proc: its names, and what its system call wants with a file."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time

from active_restore.linux.libc import libc
from active_restore.model import Intent, Task

_ACCESS_MODE = 3
_RING = "anon_inode:[io_uring]"
# Who looks must not keep the processor from who is about to sleep: with pauses, half a second at least.
_LOOKS_IN_A_ROW = 200
_LOOKS = 700
_PAUSE_SECONDS = 0.001
# System call number -> position of the open flags among its arguments; None: opens for reading (exec).
# openat2 is left out on purpose: its flags lie in memory that another thread of the task may change (see the guard).
_X86_64: dict[int, int | None] = {2: 1, 257: 2, 304: 2, 59: None, 322: None}
_AARCH64: dict[int, int | None] = {56: 2, 265: 2, 221: None, 281: None}
# truncate(2) of x86-64, of 32-bit tasks (truncate, truncate64) and of arm64.
_TRUNCATING = frozenset({76, 92, 193} if platform.machine() == "x86_64" else {45})
_SYS_TGKILL = 234 if platform.machine() == "x86_64" else 131
_OPENING = {"x86_64": _X86_64, "aarch64": _AARCH64}.get(platform.machine(), {})


def system_call(tid: int) -> list[bytes]:
    """The words of ``/proc/TID/syscall`` (proc(5)) of a thread that waits or is about to: it may not be asleep yet.

    Of a thread that never was in user mode (a worker of io_uring) only -1: its registers are those of whoever made it.
    """
    for look in range(_LOOKS):
        words = read_proc(f"/proc/{tid}/syscall").split()
        if words != [b"running"]:
            break
        if look >= _LOOKS_IN_A_ROW:
            time.sleep(_PAUSE_SECONDS)
    return words if words[-1] != b"0x0" else [b"-1"]


def read_proc(path: str) -> bytes:
    """The beginning of a file of proc(5)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def intent_of_flags(flags: int) -> Intent:
    """What an open(2) with these flags wants."""
    if flags & os.O_TRUNC:
        return Intent.TRUNCATE
    return Intent.READ if flags & _ACCESS_MODE == os.O_RDONLY else Intent.WRITE


def intent(tid: int) -> Intent:
    """The intent of the open that this thread is blocked in; WRITE where it cannot be known.

    The registers of a blocked thread do not change (``/proc/TID/syscall``, proc(5)). Numbers of 32-bit system calls
    that mean something else here do not open files, so a wrong READ cannot come out.
    """
    try:
        words = system_call(tid)
        position = _OPENING[int(words[0])]
        return Intent.READ if position is None else intent_of_flags(int(words[1 + position], 16))
    except (OSError, KeyError, ValueError, IndexError):
        return Intent.WRITE


def access_intent(tid: int) -> Intent:
    """The intent of a thread blocked in a pre-content access: WRITE for truncate(2) by path, else READ.

    Every other access needs a descriptor, and descriptors for writing are only given out once the file is settled.
    """
    try:
        number = int(system_call(tid)[0])
    except (OSError, ValueError, IndexError):
        return Intent.WRITE
    return Intent.WRITE if number in _TRUNCATING else Intent.READ


def describe(tid: int) -> Task:
    """Names of a thread for people; its thread group id is 0 where the thread is gone. Takes 20 us."""
    try:
        status = read_proc(f"/proc/{tid}/status")
    except OSError:
        return Task(tid, 0, "")
    at = status.find(b"\nTgid:\t")
    group = int(status[at + 7 : status.index(b"\n", at + 7)]) if at >= 0 else 0
    # The kernel escapes newlines and backslashes here (proc(5)); nobody needs them back.
    return Task(tid, group, status[6 : status.index(b"\n")].decode(errors="replace"))


def is_ours(tid: int) -> bool:
    """Whether a thread of this process has this id."""
    return bool(libc.syscall(_SYS_TGKILL, os.getpid(), tid, 0) == 0)


def send(tgid: int, tid: int, number: int) -> None:
    """A signal to one thread; one that is gone is no error."""
    libc.syscall(_SYS_TGKILL, tgid, tid, number)


def has_open(tid: int, what: str) -> bool:
    """Whether a descriptor of this thread's process leads there, as links in ``/proc/TID/fd`` spell it. Raises ``OSError``."""
    folder = os.open(f"/proc/{tid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(name, dir_fd=folder) == what:
                    return True
    finally:
        os.close(folder)
    return False


def can_be_stopped(tid: int) -> bool:
    """Whether SIGSTOP stops this thread for sure: PID 1 cannot be stopped, and a tracer may take the signal away.

    Raises ``OSError``.
    """
    fields = dict(line.split(b":\t", 1) for line in read_proc(f"/proc/{tid}/status").splitlines() if b":\t" in line)
    return fields[b"Tgid"] != b"1" and fields[b"TracerPid"] == b"0"


def cannot_restart(tid: int) -> bool:
    """Whether BPF would send this thread away instead of letting it wait: it is traced, handles SIGCONT, or is PID 1.

    It may do so with requests of io_uring: for who has a ring that counts as well. Raises ``OSError``. Threads of the kernel
    are told by ``system_call``.
    """
    status = read_proc(f"/proc/{tid}/status")
    fields = dict(line.split(b":\t", 1) for line in status.splitlines() if b":\t" in line)
    handled = int(fields[b"SigCgt"], 16) >> (signal.SIGCONT - 1) & 1
    return tid == 1 or fields[b"TracerPid"] != b"0" or bool(handled) or has_open(tid, _RING)
