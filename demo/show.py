"""What the demonstration prints: steps, moving progress on a terminal and plain lines elsewhere, a table in the end."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLAIN_PERIOD_S = 2.0


class Show:
    """Prints to stdout; usable from several threads."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._steps = 0
        self._bar: Progress | None = None
        self._last_plain = 0.0

    def step(self, text: str) -> None:
        """A numbered heading."""
        self._steps += 1
        self._console.print(f"\n[bold]{self._steps}. {text}[/]", soft_wrap=True)

    def command(self, text: str) -> None:
        """A command as it is run."""
        self._console.print(f"   [dim]$ {text}[/]", soft_wrap=True)

    def line(self, text: str) -> None:
        """Something happened."""
        self._console.print(f"   {text}", soft_wrap=True)

    @contextlib.contextmanager
    def moving(self, text: str, total: int | None = None) -> Iterator[None]:
        """While this lasts: a bar on a terminal (``total`` bytes, or just the time that goes by)."""
        if not self._console.is_terminal:
            self._last_plain = time.monotonic()
            yield
            return
        columns = [TextColumn("   {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()]
        with Progress(*columns, console=self._console, transient=True) as bar:
            bar.add_task(text, total=total)
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def progress(self, done: int, total: int, text: str) -> None:
        """How far it is."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=text)
        elif not self._console.is_terminal and time.monotonic() - self._last_plain >= _PLAIN_PERIOD_S:
            self._last_plain = time.monotonic()
            self.line(f"... {text}: {100 * done // max(total, 1)} %")

    def table(self, rows: list[tuple[str, float, float]]) -> None:
        """``(what, seconds as usual, seconds with active restore)``."""
        note = "active-restore counts until everything is safe on the disk; restic ends while much of it is still in memory"
        table = Table(title="Seconds after the restore began", title_justify="left", caption=note, caption_justify="left")
        table.add_column("")
        for name in ("restic restore", "active-restore", ""):
            table.add_column(name, justify="right")
        for what, usual, active in rows:
            factor = usual / active
            verdict = f"[green]{factor:.1f} times sooner[/]" if factor >= 1 else f"{1 / factor:.1f} times later"
            table.add_row(what, f"{usual:.1f} s", f"[bold]{active:.1f} s[/]", verdict)
        self._console.print()
        self._console.print(table)


def megabytes(count: float) -> str:
    """Like ``1,234 MB``."""
    return f"{count / 1e6:,.0f} MB"
