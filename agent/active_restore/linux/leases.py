"""Whether anybody has a file open for writing: the kernel gives no read lease then (fcntl(2), F_SETLEASE).

Open files count that no table of descriptors shows: registered ones of io_uring, mapped ones, those in flight.
"""

from __future__ import annotations

import contextlib
import fcntl
import signal

# Python's module lacks it.
_F_SETSIG = 10


def open_for_writing(fd: int) -> bool:
    """``fd`` is only open for reading. Also true where it cannot be known. Our own writable descriptors count."""
    try:
        # Somebody may come in between: that breaks the lease, of which we would be told by SIGIO, and die of it.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return True
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
