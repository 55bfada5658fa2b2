"""Where logbooks of restores are kept: one file a target below the log directory, which outlives the restore."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from active_restore.cli.printers.logbook import LogbookPrinter
from active_restore.cli.printers.threaded import ThreadedReporter
from active_restore.config import log_root
from active_restore.control.registry import directory_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from active_restore.restore.progress import Reporter

_SUFFIX = ".jsonl"
_KEPT = 16
_MAX_BYTES = 16 << 20
_TAIL_BYTES = 4096


def logbook_path(target: str) -> Path:
    """Of the last restore of this target."""
    return log_root() / (directory_name(target) + _SUFFIX)


def logbooks() -> list[Path]:
    """All there are, oldest first."""
    with contextlib.suppress(OSError):
        return sorted(log_root().glob("*" + _SUFFIX), key=lambda path: path.stat().st_mtime_ns)
    return []


@contextlib.contextmanager
def kept(target: str) -> Iterator[Reporter | None]:
    """A reporter that writes the logbook of a restore; ``None`` where it would lie in the target, or cannot be made."""
    fd = _open(target)
    if fd < 0:
        yield None
        return
    with ThreadedReporter(LogbookPrinter(fd)) as reporter:
        yield reporter


def _open(target: str) -> int:
    """The logbook that was not ended is gone on with."""
    path = logbook_path(target)
    inside = os.path.commonpath([os.path.realpath(path.parent), os.path.realpath(target)]) == os.path.realpath(target)
    if inside:
        return -1
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in logbooks()[: -_KEPT + 1]:
            old.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_APPEND if _goes_on(path) else os.O_TRUNC)
        return os.open(path, flags, 0o600)
    except OSError:
        return -1


def _goes_on(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL_BYTES, 0))
            return size < _MAX_BYTES and b'"event": "done"' not in file.read()
    except FileNotFoundError:
        return False
