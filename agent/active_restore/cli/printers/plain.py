"""Plain lines, for logs and pipes that people read."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from active_restore.cli.printers.output import write_line
from active_restore.cli.quantities import count, duration, percent, size, waited
from active_restore.control.names import shown
from active_restore.restore.progress import Done, FaultServed, Notice, Planned, Progress, Ready, Refused

if TYPE_CHECKING:
    from active_restore.restore.progress import Event, Status, Throttled, ThrottleReason, Waiting

_MAX_WAITING = 8
_YIELDS: dict[ThrottleReason, str] = {
    "disk": "others use the disk",
    "processor": "others need the processors",
    "memory": "memory is short",
    "demand": "tasks wait for files",
}


class PlainPrinter:
    """Writes a line for each milestone and each refused file, and one about the progress every few seconds.

    Faults are told in the progress by their number, and one by one only while a task waits: there may be thousands.
    """

    period_s = 60.0
    progress_every_s = 5.0

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._told_at = time.monotonic()

    def show(self, event: Event) -> None:
        """The lines of one event, if it has any now."""
        for line in self.lines(event):
            write_line(self.fd, line)

    def lines(self, event: Event) -> list[str]:
        """What is to be printed now; most statuses are not."""
        if isinstance(event, Progress):
            now = time.monotonic()
            if now - self._told_at < self.progress_every_s:
                return []
            self._told_at = now
        return event_lines(event)

    def tick(self) -> None:
        """Nothing changes by itself."""

    def close(self) -> None:
        """Everything is out already."""


def event_lines(event: Event) -> list[str]:
    """What one event says."""
    match event:
        case Planned():
            entries = f" ({count(event.entries, 'entry')})".replace("entrys", "entries")
            return [f"planned: {count(event.files, 'file')}, {size(event.bytes)} in snapshot {shown(event.snapshot)}{entries}"]
        case Ready():
            return [f"ready: every placeholder is in place and guarded after {event.seconds:.1f} s; the system may run"]
        case Progress():
            return status_lines(event.status)
        case FaultServed():
            return []
        case Refused():
            name = errno.errorcode.get(event.errno, str(event.errno))
            return [f"refused: {shown(event.path)}: {name}: {shown(event.detail)}"]
        case Notice():
            return [f"note: {shown(event.text)}"]
        case Done():
            return [done_line(event)]


def done_line(done: Done) -> str:
    """The last line of a restore."""
    what = f"{count(done.files, 'file')}, {size(done.bytes)} in {duration(done.seconds)}"
    faults = f"{count(done.faults, 'fault')} served"
    if done.refused:
        return f"finished: {what}, {faults}; {count(done.refused, 'file')} could NOT be restored (listed above)"
    return f"done: {what}, {faults}; all restored and verified, nothing of us is left"


def status_lines(status: Status) -> list[str]:
    """A status in one line, and one more for each of the first tasks that wait."""
    parts = [f"{phase_words(status)}: {progress_words(status)}"]
    if status.phase == "restoring":
        parts.append(rate_words(status))
        parts.append(time_left_words(status))
    if status.faults:
        parts.append(f"{count(status.faults, 'fault')} served")
    if status.refused:
        parts.append(f"{status.refused:,} refused")
    return [
        ", ".join(parts),
        *range_lines(status),
        *unreachable_lines(status),
        *prediction_lines(status),
        *waiting_lines(status.waiting),
    ]


def range_lines(status: Status) -> list[str]:
    """The files by range that are not finished, and what lets tasks fault by range."""
    ranges = status.ranges
    if not ranges.files:
        return []
    how = f"by {ranges.mechanism}" if ranges.mechanism else "this kernel cannot: tasks wait for all of a file"
    if ranges.mechanism:
        how += ", mappings " + ("by their part" if ranges.windows else "to the end of their file")
    there = f"{size(ranges.bytes_present)} of {size(ranges.bytes_total)} there"
    return [
        f"{count(ranges.files, 'file')} by range ({how}), {there}, {size(ranges.bytes_wanted)} came because tasks wanted them"
    ]


def phase_words(status: Status) -> str:
    """The phase, and whether the background stands still."""
    return f"{status.phase} (background paused)" if status.paused and status.phase == "restoring" else status.phase


def progress_words(status: Status) -> str:
    """How much of the files and bytes is there."""
    if not status.files_total and status.phase in ("planning", "laying"):
        return "counting files"
    files = f"{status.files_done:,} of {count(status.files_total, 'file')}"
    return f"{share(status)}, {files}, {size(status.bytes_there)} of {size(status.bytes_total)}"


def share(status: Status) -> str:
    """The share of the bytes (of the files where all are empty); 100% only when no file and no byte is left."""
    done, total = status.bytes_there, status.bytes_total
    if total == 0:
        done, total = status.files_done, status.files_total
    text = percent(done, total)
    return "99.9%" if text == "100%" and status.files_done < status.files_total else text


def rate_words(status: Status) -> str:
    """The rate, the limit where there is one, and to whom the background yields."""
    limit = f" (limit {size(status.limit_bytes_per_s)}/s)" if status.limit_bytes_per_s else ""
    return f"{size(status.rate_bytes_per_s)}/s{limit}{_yield_words(status.throttle)}"


def _yield_words(throttle: Throttled) -> str:
    if throttle.reason == "free":
        return ""
    rate = f", at most {size(throttle.rate_bytes_per_s)}/s" if throttle.rate_bytes_per_s else ""
    return f" (yields: {_YIELDS[throttle.reason]}{rate})"


def time_left_words(status: Status) -> str:
    """The time left, or that it is not known."""
    if status.files_done + status.refused >= status.files_total and status.bytes_done >= status.bytes_total:
        return "nothing left to fetch"
    if status.eta_s is None or status.paused:
        return "time left not known"
    return f"about {duration(max(status.eta_s, 1.0))} left"


def unreachable_lines(status: Status) -> list[str]:
    """That the source is away, and for how long."""
    if status.source_unreachable_s <= 0:
        return []
    return [f"the source cannot be reached since {duration(status.source_unreachable_s)}; trying again"]


def prediction_lines(status: Status) -> list[str]:
    """What became of guesses, by kind."""
    return [
        f"predicted ({kind}): {count(found.made, 'file')}, {found.hit:,} in time, {found.late:,} late, {found.wasted:,} unused"
        for kind, found in sorted(status.predictions.items())
        if found.made
    ]


def waiting_lines(waiting: tuple[Waiting, ...]) -> list[str]:
    """Who waits for what and for how long, the longest first."""
    longest = sorted(waiting, key=lambda wait: -wait.waited_ms)
    lines = [
        f"waiting: {shown(wait.task.comm)} ({wait.task.tid}) for {shown(wait.path)}, {waited(wait.waited_ms)}"
        for wait in longest[:_MAX_WAITING]
    ]
    more = len(waiting) - len(lines)
    return [*lines, f"waiting: {count(more, 'more task')}"] if more else lines
