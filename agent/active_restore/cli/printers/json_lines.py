"""One JSON object per line, for programs. Names and units are an interface: they change only with a new major version."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

from active_restore.cli.printers.output import write_line
from active_restore.control.messages import ErrorText, StatusText
from active_restore.control.names import path_fields, plain
from active_restore.restore.progress import Done, FaultServed, Notice, Planned, Progress, Ready, Refused

if TYPE_CHECKING:
    from active_restore.errors import ActiveRestoreError
    from active_restore.restore.progress import Event


class JsonPrinter:
    """Writes events to a descriptor."""

    period_s = 60.0

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: list[str] = []

    def show(self, event: Event) -> None:
        """One line; it goes out with all those that are told in one go."""
        self._lines.append(dump(event_fields(event)))

    def tick(self) -> None:
        """All is told that happened."""
        if self._lines:
            lines, self._lines = self._lines, []
            write_line(self._fd, "\n".join(lines))

    def close(self) -> None:
        """The last lines."""
        self.tick()


def event_fields(event: Event) -> dict[str, Any]:
    """The object of one event; ``event`` names its kind."""
    match event:
        case Planned():
            return {
                "event": "planned",
                "files": event.files,
                "bytes": event.bytes,
                "entries": event.entries,
                "snapshot": event.snapshot,
            }
        case Ready():
            return {"event": "ready", "seconds": event.seconds}
        case Progress():
            return {"event": "progress", **StatusText.of(event.status).model_dump(mode="json", exclude_none=True)}
        case FaultServed():
            return {
                "event": "fault",
                **path_fields(event.path),
                # Not by a model: there are thousands, and whoever computes here keeps the interpreter from serving faults.
                "task": {"tid": event.task.tid, "tgid": event.task.tgid, "comm": plain(event.task.comm)},
                "waited_ms": event.waited_ms,
                "lane": event.lane.name.lower(),
            }
        case Refused():
            return {
                "event": "refused",
                **path_fields(event.path),
                "errno": event.errno,
                "errno_name": errno.errorcode.get(event.errno, ""),
                "detail": plain(event.detail),
            }
        case Notice():
            return {"event": "notice", "text": plain(event.text)}
        case Done():
            return {
                "event": "done",
                "files": event.files,
                "bytes": event.bytes,
                "faults": event.faults,
                "refused": event.refused,
                "seconds": event.seconds,
            }


def error_line(error: ActiveRestoreError) -> str:
    """The line of an error that ended a command."""
    return dump({"event": "error", **ErrorText.of(error).model_dump(), "exit_code": error.exit_code})


def dump(fields: dict[str, Any]) -> str:
    """One object as one line of ASCII."""
    return json.dumps(fields)
