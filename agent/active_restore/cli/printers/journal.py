"""Plain lines with priorities, for systemd's journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.cli import journal
from active_restore.cli.printers.output import write_line
from active_restore.cli.printers.plain import PlainPrinter
from active_restore.restore.progress import Done, FaultServed, Notice, Planned, Progress, Ready, Refused

if TYPE_CHECKING:
    from active_restore.restore.progress import Event


class JournalPrinter(PlainPrinter):
    """As ``PlainPrinter``, but progress is told once a minute only: a restore may take days, and journals are kept."""

    progress_every_s = 60.0

    def show(self, event: Event) -> None:
        """The lines of one event, if it has any now."""
        for line in self.lines(event):
            write_line(self.fd, _priority(event) + line)


def _priority(event: Event) -> str:
    match event:
        case Refused():
            return journal.ERROR
        case Notice():
            return journal.WARNING
        case Done():
            return journal.ERROR if event.refused else journal.NOTICE
        case Planned() | Ready():
            return journal.NOTICE
        case Progress():
            return journal.WARNING if event.status.source_unreachable_s else journal.INFO
        case FaultServed():
            return journal.DEBUG
