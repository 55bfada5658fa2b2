"""Which printer a restore gets."""

from __future__ import annotations

import os
import sys

from active_restore.cli.journal import is_journal
from active_restore.cli.printers.journal import JournalPrinter
from active_restore.cli.printers.json_lines import JsonPrinter
from active_restore.cli.printers.plain import PlainPrinter
from active_restore.cli.printers.threaded import ThreadedReporter


def on_terminal() -> bool:
    """Whether stdout is a terminal that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def reporter(*, as_json: bool) -> ThreadedReporter:
    """JSON lines when asked, a live display on a terminal, else plain lines, with priorities for the journal; all on stdout."""
    if as_json:
        return ThreadedReporter(JsonPrinter(1))
    if is_journal(1):
        return ThreadedReporter(JournalPrinter(1))
    if not on_terminal():
        return ThreadedReporter(PlainPrinter(1))
    # Only here: its libraries need 20 ms to load, which a service would spend before it is ready.
    from active_restore.cli.printers.live import LivePrinter

    return ThreadedReporter(LivePrinter(sys.stdout))
