"""Whether what we print goes to systemd's journal, and the priorities that it understands.

Source: systemd.exec(5), ``$JOURNAL_STREAM``; sd-daemon(3), ``<N>`` in front of a line.
"""

from __future__ import annotations

import logging
import os

ERROR, WARNING, NOTICE, INFO, DEBUG = "<3>", "<4>", "<5>", "<6>", "<7>"
_LEVELS = ((logging.ERROR, ERROR), (logging.WARNING, WARNING), (logging.INFO, INFO))


def is_journal(fd: int) -> bool:
    """Whether this descriptor leads to the journal (and not to a pipe or file that somebody has put in its place)."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def priority(level: int) -> str:
    """The prefix of a log level."""
    return next((prefix for least, prefix in _LEVELS if level >= least), DEBUG)


class JournalFormatter(logging.Formatter):
    """One line a record, tracebacks too, each with its priority."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        prefix = priority(record.levelno)
        return "\n".join(prefix + line for line in super().format(record).splitlines())
