"""A file system that is mounted nowhere: fsopen(2) and friends, for looking into one without touching the name space."""

from __future__ import annotations

import os

from active_restore.linux.libc import check, libc

# The same numbers on all processors.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC = 1
_CMD_CREATE = 6


def detached(kind: str) -> int:
    """A descriptor of the root of a new mount of this kind; the caller closes it. Raises ``OSError``."""
    context = check(libc.syscall(_FSOPEN, kind.encode(), _CLOEXEC), kind)
    try:
        check(libc.syscall(_FSCONFIG, context, _CMD_CREATE, None, None, 0), kind)
        return check(libc.syscall(_FSMOUNT, context, _CLOEXEC, 0), kind)
    finally:
        os.close(context)
