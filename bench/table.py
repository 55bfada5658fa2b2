"""The result as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.row import Row

_VERDICTS = {True: "[green]holds[/]", False: "[red]missed[/]", None: ""}
_MIN_WIDTH = 150


def show(rows: Sequence[Row]) -> None:
    """Print it; wide enough for whole names where it is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_MIN_WIDTH)
    table = Table(title="Active Restore against its peers (medians; README.md says how to read it)")
    for name in ("what", "ours", "peer", "unit", "peer is", "ratio", "goal", ""):
        table.add_column(name, justify="right" if name in ("ours", "peer", "ratio") else "left", overflow="fold")
    for row in rows:
        figures = (f"{row.ours:g}", f"{row.peer:g}", row.unit, row.peer_name, f"{row.ratio:.2f}", row.goal)
        table.add_row(row.name, *figures, _VERDICTS[row.holds])
    console.print(table)
