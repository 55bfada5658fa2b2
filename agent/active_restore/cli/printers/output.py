"""Writing to a descriptor that may be a pipe nobody reads."""

from __future__ import annotations

import os
import select


def write_line(fd: int, line: str) -> None:
    """Write a line and its end. Raises ``OSError`` (mostly ``BrokenPipeError``) when nobody can read it any more."""
    view = memoryview(line.encode("utf-8", "backslashreplace") + b"\n")
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            # Whoever started us made the descriptor non-blocking; only the thread that prints waits here.
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()
