"""Which systemd unit (or cgroup) a process belongs to, and which program it runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

_SUFFIXES = (".service", ".scope", ".socket", ".mount", ".timer")
_REMEMBER_S = 1.0
_MOST = 4096


class Who(NamedTuple):
    """Empty where it is not known: the process is gone. ``program`` is its command name (15 bytes)."""

    unit: str
    program: str


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
        self._known: dict[int, tuple[float, Who]] = {}

    def of(self, pid: int) -> str:
        """The unit of a process, empty where it is gone."""
        return self.who(pid).unit

    def who(self, pid: int) -> Who:
        """Unit and program of a process."""
        now = time.monotonic()
        then, who = self._known.get(pid, (0.0, _NOBODY))
        if then and now - then < _REMEMBER_S:
            return who
        try:
            place = Path(f"/proc/{pid}")
            program = (place / "comm").read_text(errors="replace").rstrip("\n")
            who = Who(unit_of((place / "cgroup").read_text(errors="replace")), program)
        except OSError:
            who = _NOBODY
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[pid] = (now, who)
        return who


_NOBODY = Who("", "")
