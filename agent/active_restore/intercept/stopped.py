"""Processes that were stopped because nobody was there to let them spin for."""

from __future__ import annotations

import contextlib
import os
import signal
import time

# A stop may arrive a little later than its end.
CONFIRM_SECONDS = (0.02, 0.2, 1.0)


def proceed(tgid: int) -> None:
    """SIGCONT to a process, which also takes away a stop that it has not obeyed yet; one that is gone is no error."""
    # Not only ESRCH: the number may have been given to a thread meanwhile (EINVAL).
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(tgid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        finally:
            os.close(pidfd)


def is_stopped(tgid: int) -> bool:
    """Whether it is stopped (not parked)."""
    with contextlib.suppress(OSError), open(f"/proc/{tgid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[0] == b"T"
    return False


def resume_all(tgids: set[int]) -> None:
    """Continue these, also if their stop arrives a little later than this; done when none of them is stopped."""
    for tgid in tgids:
        proceed(tgid)
    for delay in CONFIRM_SECONDS:
        if not tgids:
            return
        time.sleep(delay)
        tgids = {tgid for tgid in tgids if is_stopped(tgid)}
        for tgid in tgids:
            proceed(tgid)
