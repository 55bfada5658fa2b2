"""A live display on a terminal: what is restored, how fast, and who waits."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from active_restore.cli.printers.plain import (
    event_lines,
    phase_words,
    prediction_lines,
    progress_words,
    range_lines,
    rate_words,
    time_left_words,
    unreachable_lines,
)
from active_restore.cli.quantities import count, duration, size, waited
from active_restore.control.names import shown
from active_restore.restore.progress import Done, LaneCount, Planned, Progress, Ready, Status

if TYPE_CHECKING:
    from active_restore.restore.progress import Event

_MAX_WAITING = 8
_MIN_PERIOD_S = 0.1
_LANES = ("demand", "predicted", "background")


class LivePrinter:
    """Draws on a terminal; milestones and refused files scroll by above the display."""

    period_s = 0.25

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=False)
        # Draw once into nothing: rich imports parts of itself when it needs them first, and by then our own
        # libraries may be placeholders that wait for us.
        Console(file=io.StringIO(), force_terminal=True).print(frame(_EXAMPLE))
        # No redirection: other threads that write to stderr must not wait for this terminal.
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._drawn_at = 0.0
        self._status: Status | None = None
        self._seen_at = 0.0
        self._live.start()

    def show(self, event: Event) -> None:
        """Take one event; the display follows at the next tick."""
        if isinstance(event, Progress):
            self._status, self._seen_at = event.status, time.monotonic()
            return
        for line in event_lines(event):
            self._console.print(Text(line, style=_style(event)))
        if isinstance(event, Done):
            self._status = None
            self._live.update(Text(""), refresh=True)

    def tick(self) -> None:
        """Draw, at most ten times a second."""
        now = time.monotonic()
        if self._status is not None and now - self._drawn_at >= _MIN_PERIOD_S:
            self._drawn_at = now
            self._live.update(frame(self._status, now - self._seen_at), refresh=True)

    def close(self) -> None:
        """Leave the last state on the screen and the cursor below it."""
        if self._status is not None:
            self._live.update(frame(self._status), refresh=True)
        self._live.stop()


def _style(event: Event) -> str:
    if isinstance(event, Ready | Planned):
        return "bold green"
    if isinstance(event, Done):
        return "bold red" if event.refused else "bold green"
    return "yellow"


def frame(status: Status, age_s: float = 0.0) -> RenderableType:
    """The display of one status. ``age_s`` is how long ago it was true: waits have become so much longer."""
    head = Text.assemble(
        (phase_words(status), "bold cyan"),
        "  ",
        (shown(status.target), "bold"),
        f"  from {shown(status.source)}",
        f", snapshot {shown(status.snapshot)}" if status.snapshot else "",
        no_wrap=True,
        overflow="ellipsis",
    )
    total, done = (status.bytes_total, status.bytes_there) if status.bytes_total else (status.files_total, status.files_done)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=max(total, 1), completed=done, width=24), Text(progress_words(status)))
    parts: list[RenderableType] = [head, bar]
    if status.phase == "restoring":
        parts.append(Text(f"{rate_words(status)}, {time_left_words(status)}, running for {duration(status.seconds)}"))
    parts.append(_lanes(status))
    parts.extend(Text(line, style="dim") for line in (*range_lines(status), *prediction_lines(status)))
    parts.extend(Text(line, style="bold red") for line in unreachable_lines(status))
    if status.waiting:
        parts.append(_waiting(status, age_s))
    return Group(*parts)


def _lanes(status: Status) -> Group:
    table = Table.grid(padding=(0, 2))
    for name in _LANES:
        lane = status.lanes.get(name, LaneCount())
        table.add_row(Text(name, style="dim"), Text(count(lane.files, "file"), justify="right"), Text(size(lane.bytes)))
    told = [f"{count(status.faults, 'fault')} served"]
    if status.refused:
        told.append(f"{status.refused:,} refused")
    if status.interceptor:
        reason = f" ({shown(status.interceptor_reason)})" if status.interceptor_reason else ""
        told.append(f"tasks held by {status.interceptor}{reason}")
    return Group(table, Text(", ".join(told), style="dim"))


def _waiting(status: Status, age_s: float) -> Table:
    table = Table.grid(padding=(0, 2))
    longest = sorted(status.waiting, key=lambda wait: -wait.waited_ms)
    for wait in longest[:_MAX_WAITING]:
        table.add_row(
            Text("waiting", style="yellow"),
            Text(f"{shown(wait.task.comm)} ({wait.task.tid})"),
            Text(waited(wait.waited_ms + age_s * 1000), justify="right"),
            Text(shown(wait.path), no_wrap=True, overflow="ellipsis"),
        )
    if len(longest) > _MAX_WAITING:
        table.add_row(Text("waiting", style="yellow"), Text(f"and {len(longest) - _MAX_WAITING:,} more"))
    return table


_EXAMPLE = Status("restoring", "/\u00e4", "dir:/\u2026", "latest", "fanotify", 1.0, 10, 10, 5, 5, 1, 1, 1, 1.0, 1.0)
