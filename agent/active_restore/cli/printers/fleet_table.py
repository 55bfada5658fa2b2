"""A fleet as a table: live on a terminal, or once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UnsetType
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from active_restore.cli.printers.fleet_lines import phase_words, report_words, summary, waiting_words
from active_restore.cli.quantities import count, duration, size
from active_restore.control.names import shown

if TYPE_CHECKING:
    from rich.console import RenderableType

    from active_restore.mqtt.fleet import Change, Fleet, Machine

_QUIET_S = 10.0
_STYLES = {
    "lost": "bold red",
    "failed": "bold red",
    "interrupted": "yellow",
    "done": "green",
    "restoring": "cyan",
}


class LiveTable:
    """Redrawn in place; as many machines as the terminal is high, those first who need somebody."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, screen=False)
        self._live.start()

    def change(self, change: Change) -> None:
        """Shown at the next drawing."""

    def draw(self, fleet: Fleet, now: float, trouble: str) -> None:
        """Draw."""
        rows = max(self._console.size.height - 5, 1)
        self._live.update(table(fleet, now, trouble, rows), refresh=True)

    def close(self, fleet: Fleet, now: float) -> None:
        """Leave the last state on the screen and the cursor below it."""
        self._live.stop()


class PlainTable:
    """Printed once, at the end, with every machine."""

    def change(self, change: Change) -> None:
        """Shown at the end."""

    def draw(self, fleet: Fleet, now: float, trouble: str) -> None:
        """Not yet."""

    def close(self, fleet: Fleet, now: float) -> None:
        """Print."""
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=160)
        console.print(table(fleet, now, "", None))


def table(fleet: Fleet, now: float, trouble: str, most: int | None) -> RenderableType:
    """At most ``most`` machines (``None``: all), and a line about all of them."""
    machines = fleet.machines()
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in ("machine", "phase", "", "", "rate", "left", "waiting"):
        grid.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if name in ("rate", "left") else "left")
    for machine in machines[:most]:
        grid.add_row(*_cells(machine, now))
    parts: list[RenderableType] = [Text(summary(machines), style="bold"), grid]
    if most is not None and len(machines) > most:
        parts.append(Text(f"and {count(len(machines) - most, 'machine')} more", style="dim"))
    if fleet.dropped:
        parts.append(Text(f"{count(fleet.dropped, 'message')} not understood", style="yellow"))
    if trouble:
        parts.append(Text(f"the broker cannot be heard: {shown(trouble)}; trying again", style="bold red"))
    return Group(*parts)


def _cells(machine: Machine, now: float) -> list[RenderableType]:
    progress = machine.progress
    style = _STYLES.get(machine.phase, "")
    name = Text(shown(machine.node), style="bold")
    phase = Text(phase_words(machine), style=style)
    if machine.is_working and machine.seen_at is not None and now - machine.seen_at > _QUIET_S:
        phase.append(f", silent for {duration(now - machine.seen_at)}", style="yellow")
    if progress is None:
        return [name, phase, "", "", "", "", ""]
    bar = ProgressBar(total=100, completed=progress.percent, width=16)
    cells: list[RenderableType] = [name, phase, bar, Text(f"{progress.percent:.1f}% of {size(progress.bytes_total)}")]
    if not machine.is_working:
        return [*cells, "", "", Text(report_words(machine.report) if machine.report else "", style=style)]
    left = "" if isinstance(progress.eta_s, UnsetType) or progress.paused else duration(max(progress.eta_s, 1.0))
    return [*cells, f"{size(progress.rate_bytes_per_s)}/s", left, Text(waiting_words(machine), style="yellow")]
