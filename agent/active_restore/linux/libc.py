"""The C library with errno, and the one way to turn its return values into ``OSError``."""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def check(result: int, what: str) -> int:
    """``result``, or an ``OSError`` with the errno of the call that just failed and ``what`` as its file name."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def give_back_memory() -> None:
    """malloc_trim(3), where the C library has it: what was freed goes back to the system, after a big piece of work."""
    trim = getattr(libc, "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
