"""The log of the agent on stderr, written by a thread of its own: logging never waits for a terminal or a full pipe."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
import sys
from typing import TYPE_CHECKING

from active_restore.cli import journal

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORMAT = "active-restore: %(levelname)s: %(message)s"
_MAX_RECORDS = 1000


class _Dropping(logging.handlers.QueueHandler):
    """Leaves a record out rather than wait for room."""

    def __init__(self, records: queue.SimpleQueue[logging.LogRecord]) -> None:
        super().__init__(records)
        self._records = records

    def enqueue(self, record: logging.LogRecord) -> None:
        """Take the record if there is room. The bound is kept here: the end of the log must always find a place."""
        if self._records.qsize() < _MAX_RECORDS:
            self._records.put(record)


@contextlib.contextmanager
def to_stderr(*, debug: bool) -> Iterator[None]:
    """Log to stderr while the block runs: warnings and worse, with ``debug`` everything.

    In the journal each line has its priority, and the configuration says how much is told.
    """
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    writer = logging.StreamHandler(sys.stderr)
    in_journal = journal.is_journal(2)
    lines = journal.JournalFormatter("%(message)s") if in_journal else logging.Formatter(_FORMAT)
    writer.setFormatter(lines)
    listener = logging.handlers.QueueListener(records, writer)
    handler = _Dropping(records)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else _configured() if in_journal else logging.WARNING)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        listener.stop()


def _configured() -> int:
    """The level of the configuration file; a file that is wrong is told of by whoever needs it."""
    from active_restore.errors import ActiveRestoreError
    from active_restore.settings.file import load

    with contextlib.suppress(ActiveRestoreError):
        return logging.getLevelNamesMapping()[load().log.level.upper()]
    return logging.INFO
