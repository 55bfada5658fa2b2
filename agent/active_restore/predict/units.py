"""Which systemd unit (or cgroup) a process belongs to."""

from __future__ import annotations

import time
from pathlib import Path

_SUFFIXES = (".service", ".scope", ".socket", ".mount", ".timer")
_REMEMBER_S = 1.0
_MOST = 4096


def unit_of(cgroups: str) -> str:
    """The unit in the content of ``/proc/PID/cgroup`` (cgroups(7)), else the whole path; empty for the root."""
    for line in sorted(cgroups.splitlines(), key=_order):
        path = line.split(":", 2)[-1].strip("/")
        for name in reversed(path.split("/")):
            if name.endswith(_SUFFIXES):
                return name
        if path:
            return path
    return ""


def _order(line: str) -> int:
    """Version 2 first, then systemd's own hierarchy of version 1, then the rest."""
    return 0 if line.startswith("0::") else 1 if ":name=systemd:" in line else 2


class Units:
    """Remembers for a moment: a program that starts opens many files."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, str]] = {}

    def of(self, pid: int) -> str:
        """The unit of a process, empty where it is gone."""
        now = time.monotonic()
        then, unit = self._known.get(pid, (0.0, ""))
        if then and now - then < _REMEMBER_S:
            return unit
        try:
            unit = unit_of(Path(f"/proc/{pid}/cgroup").read_text(errors="replace"))
        except OSError:
            unit = ""
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[pid] = (now, unit)
        return unit
