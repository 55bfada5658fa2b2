"""The text file for Prometheus' node exporter, written by a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.control import metrics

if TYPE_CHECKING:
    from types import TracebackType

    from active_restore.control.registry import Known
    from active_restore.settings.tables import MetricsTable

_log = logging.getLogger(__name__)


class TextFile:
    """``with TextFile(table) as file:`` writes every interval what ``see`` was last given; the file goes with the block.

    A file that stayed behind would go on telling what is no longer so. Without a path it does nothing.
    """

    def __init__(self, table: MetricsTable) -> None:
        self._path = Path(table.textfile) if table.textfile else None
        self._interval_s = table.interval
        self._restores: list[Known] | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def see(self, restores: list[Known]) -> None:
        """What there is now; never waits."""
        self._restores = restores

    def __enter__(self) -> TextFile:
        if self._path is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        if self._path is not None:
            # An agent that does not answer may take longer; the thread is a daemon.
            self._thread.join(2)
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        told = ""
        while not self._ending.wait(self._interval_s):
            if self._restores is None:
                continue
            try:
                self._write(metrics.text(metrics.collect(self._restores)))
                told = ""
            except OSError as error:
                if str(error) != told:
                    told = str(error)
                    _log.error("metrics cannot be written: %s", error)

    def _write(self, text: str) -> None:
        """Replaced as a whole: its reader never sees a part. Readable for everybody, whatever our umask is."""
        assert self._path is not None
        fresh = self._path.with_name(f".{self._path.name}.new")
        try:
            with open(fresh, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(text)
            if not self._ending.is_set():
                fresh.rename(self._path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
