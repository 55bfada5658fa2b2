"""The log of the agent on stderr, written by a thread of its own: logging never waits for a terminal or a full pipe."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_RECORDS = 1000


class _Dropping(logging.handlers.QueueHandler):
    """Leaves a record out rather than wait for room."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """Take the record if there is room."""
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


@contextlib.contextmanager
def to_stderr(*, debug: bool) -> Iterator[None]:
    """Log to stderr while the block runs: warnings and worse, with ``debug`` everything."""
    records: queue.Queue[logging.LogRecord] = queue.Queue(_MAX_RECORDS)
    writer = logging.StreamHandler(sys.stderr)
    writer.setFormatter(logging.Formatter("active-restore: %(levelname)s: %(message)s"))
    listener = logging.handlers.QueueListener(records, writer)
    handler = _Dropping(records)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.WARNING)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        listener.stop()
