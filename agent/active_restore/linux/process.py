"""What a process says to the kernel about itself: priorities, death signals, memory locks."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import platform
import resource
import signal
import threading
from pathlib import Path

from active_restore.linux.libc import check, libc

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4
# Descriptors of files that are filled and wait for being durable, or of events that wait for an answer.
_FILES_AT_ONCE = 1 << 14
_HURRIED_NICE = -10
_HURRIED_PRIORITY = 1
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_IDLE = 3
_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}


def die_with_parent(number: int) -> None:
    """Ask for a signal when the parent thread ends."""
    check(libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")


def name_thread(name: str) -> None:
    """Set the command name of this thread (15 bytes)."""
    libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def lock_memory(*, as_used: bool = False) -> None:
    """mlockall(2): no page that this process uses waits for a disk; later mappings are locked page by page as they are used.

    ``as_used``: those that are there, too.
    """
    check(libc.mlockall(_MCL_CURRENT | (_MCL_ONFAULT if as_used else 0)), "mlockall")
    check(libc.mlockall(_MCL_FUTURE | _MCL_ONFAULT), "mlockall")


def hurry() -> None:
    """Let this thread run before ordinary ones, at once when it wakes up. Raises ``OSError`` without privilege.

    Measured beside two busy workers: the p99 of a fault is half of that with a mere nice value, where a worker may first
    end its time slice.
    """
    thread = threading.get_native_id()
    try:
        os.sched_setscheduler(thread, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_HURRIED_PRIORITY))
    except OSError:
        os.setpriority(os.PRIO_PROCESS, thread, _HURRIED_NICE)


def idle_io() -> None:
    """I/O priority class idle for this thread; schedulers without classes ignore it."""
    number = _SYS_IOPRIO_SET.get(platform.machine())
    if number is not None:
        libc.syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE << 13)


def spare_from_oom_killer() -> None:
    """oom_score_adj -1000 for this process. Raises ``OSError`` without the privilege."""
    Path("/proc/self/oom_score_adj").write_text("-1000")


def collect_no_garbage() -> None:
    """From now on only counts of references free memory: for processes that make no cycles, but many objects."""
    gc.freeze()
    gc.disable()


def allow_many_files() -> None:
    """Raise the limit of open descriptors of this process to its hard limit, and have room for many at once.

    Later, the thread that opens the one descriptor too many would wait for the kernel each time that its table is doubled:
    4 to 15 ms (measured; it waits until no other thread of the process can be looking at the old table).
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    make_room_for_files()


def make_room_for_files() -> None:
    """See ``allow_many_files``; within the limit that there is."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    spare = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    try:
        # RLIM_INFINITY is negative.
        highest = min(_FILES_AT_ONCE, limit) if limit > 0 else _FILES_AT_ONCE
        with contextlib.suppress(OSError):
            os.close(fcntl.fcntl(spare, fcntl.F_DUPFD_CLOEXEC, highest - 1))
    finally:
        os.close(spare)


def is_alive(tid: int) -> bool:
    """Whether a thread with this id exists and has not ended (as a zombie has)."""
    return _state(tid)[1] not in b"ZX"


def exists(tid: int) -> bool:
    """Whether there is a thread with this id, be it one that has ended and waits for whom it belongs to (a zombie)."""
    return _state(tid)[1] != b"X"


def rouse(pid: int, name: bytes = b"") -> None:
    """Let a process of ours go on that somebody has stopped: tasks wait for it. Its command name begins with ``name``."""
    comm, state = _state(pid)
    if state == b"T" and comm.startswith(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _state(tid: int) -> tuple[bytes, bytes]:
    """Command name and state letter (proc(5), stat) of a thread; state X where there is none."""
    try:
        stat = Path(f"/proc/{tid}/stat").read_bytes()
    except OSError:
        return b"", b"X"
    end = stat.rindex(b")")
    return stat[stat.index(b"(") + 1 : end], stat[end + 2 : end + 3]
