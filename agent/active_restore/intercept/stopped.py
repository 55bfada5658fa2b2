"""Processes that were stopped because nobody was there to let them spin for."""

from __future__ import annotations

import contextlib
import os
import signal
import time

# A stop may arrive a little later than its end.
CONFIRM_SECONDS = (0.02, 0.2, 1.0)


def proceed(tgid: int) -> None:
    """SIGCONT to a process; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError):
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
    for delay in (0.0, *CONFIRM_SECONDS):
        time.sleep(delay)
        tgids = {tgid for tgid in tgids if is_stopped(tgid)}
        if not tgids:
            return
        for tgid in tgids:
            proceed(tgid)
