"""ptrace(2), as far as holding a single thread needs it. Every call for one thread comes from the same thread of ours."""

from __future__ import annotations

import ctypes
import os

from active_restore.linux.libc import check, libc

_DETACH, _SEIZE, _INTERRUPT = 17, 0x4206, 0x4207
_WALL, _WNOTHREAD = 0x40000000, 0x20000000
_EVENT_STOP = 128

libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def seize(tid: int) -> None:
    """Become the tracer of a thread without stopping it. Raises EPERM (traced already, Yama, seccomp) or ESRCH."""
    check(libc.ptrace(_SEIZE, tid, None, None), f"thread {tid}")


def interrupt(tid: int) -> None:
    """Ask a seized thread to stop."""
    check(libc.ptrace(_INTERRUPT, tid, None, None), f"thread {tid}")


def detach(tid: int, signal: int) -> None:
    """Let a stopped thread go on, with a signal or with none (0). Raises ESRCH where it is gone or not stopped."""
    check(libc.ptrace(_DETACH, tid, None, signal), f"thread {tid}")


def change(tid: int) -> int | None:
    """The wait status of one thread that we trace, ``None`` where nothing changed. Raises ``ChildProcessError``."""
    found, status = os.waitpid(tid, _WALL | os.WNOHANG)
    return status if found else None


def next_change() -> tuple[int, int] | None:
    """(thread id, wait status) of a thread that this thread of ours traces, ``None`` where nothing changed."""
    try:
        tid, status = os.waitpid(-1, _WALL | _WNOTHREAD | os.WNOHANG)
    except ChildProcessError:
        return None
    return (tid, status) if tid else None


def is_trap(status: int) -> bool:
    """Whether a wait status is the stop that ``interrupt`` asked for (not the user's group stop, not a signal)."""
    return os.WIFSTOPPED(status) and status >> 16 == _EVENT_STOP and os.WSTOPSIG(status) == 5


def is_group_stop(status: int) -> bool:
    """Whether the thread stopped together with its process because of somebody's SIGSTOP or SIGTSTP."""
    return os.WIFSTOPPED(status) and status >> 16 == _EVENT_STOP and os.WSTOPSIG(status) != 5
