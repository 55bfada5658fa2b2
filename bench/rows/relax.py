"""What relax mode costs everybody else: opens on a file system that it watches, against the same before it began."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.service.hearing import Hearing
from bench.restoring import command
from bench.row import Goal, row
from bench.rows.others import opens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from bench.rig import Rig
    from bench.row import Row

_LATER_GOAL = Goal("ours/peer", "<=", 1.05)
_FILES = 10_000
_PATIENCE_S = 60
_TICK_US = 10_000


def measure(rig: Rig) -> Iterator[Row]:
    """Microseconds of the first open of each file, of later ones, and of its own processor time."""
    first: dict[str, list[float]] = {"watched": [], "free": []}
    later: dict[str, list[float]] = {"watched": [], "free": []}
    own = []
    count = min(_FILES, rig.scale.small_files)
    for number in range(rig.scale.rounds):
        rig.say(f"relax mode, round {number + 1} of {rig.scale.rounds}")
        with rig.disk() as disk:
            files = {which: _files(disk / which, count) for which in first}
            opens(rig, files["free"], first["free"], later["free"])
            with _Relaxed(rig, disk) as relaxed:
                before = relaxed.cpu_us
                opens(rig, files["watched"], first["watched"], later["watched"], between=relaxed.catch_up)
                # The clock of a process counts in hundredths of a second: no time at all is less than one of them.
                own.append(max(relaxed.cpu_us - before, _TICK_US) / count)
    name = "relax mode, open"
    yield row(f"{name}, first", "us", first["watched"], ("not watched", first["free"]))
    yield row(f"{name}, later", "us", later["watched"], ("not watched", later["free"]), _LATER_GOAL)
    yield row("relax mode, its own processor time for each file", "us", own, ("the open itself", first["free"]))


def _files(directory: Path, count: int) -> list[str]:
    """With content: an empty file is nothing to learn."""
    directory.mkdir()
    paths = [directory / str(number) for number in range(count)]
    for path in paths:
        path.write_bytes(b"x")
    return [str(path) for path in paths]


class _Relaxed:
    """The service while the block runs."""

    def __init__(self, rig: Rig, directory: Path) -> None:
        settings = rig.scratch / "relax.toml"
        settings.write_text(f"[relax]\ndirectories = ['{directory}']\n")
        self._hearing = Hearing(rig.sockets / "notify")
        env = {**rig.env, "ACTIVE_RESTORE_CONFIG": str(settings), "NOTIFY_SOCKET": self._hearing.address}
        self._process = subprocess.Popen(command("relax"), env=env)

    def __enter__(self) -> _Relaxed:
        self._until("READY")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(_PATIENCE_S)
        self._hearing.close()

    def _until(self, word: str) -> None:
        while not any(word in message.words for message in self._hearing.messages()):
            if not select.select([self._hearing.sock], [], [], _PATIENCE_S)[0]:
                raise RuntimeError("relax mode says nothing")

    def catch_up(self) -> None:
        """Until it has heard of all that was opened."""
        list(self._hearing.messages())
        self._process.send_signal(signal.SIGHUP)
        self._until("STATUS")

    @property
    def cpu_us(self) -> float:
        """Its processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1e6 + 1e-3
