"""One ``active-restore restore`` in a process of its own, followed by its JSON events."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.orphans import end_orphans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PATIENCE_SECONDS = 600.0


def command(*arguments: str) -> list[str]:
    """The command line of ``active-restore`` that belongs to this Python."""
    installed = Path(sys.executable).parent / "active-restore"
    if installed.exists():
        return [str(installed), *arguments]
    return [sys.executable, "-P", "-c", "from active_restore.cli.main import run; run()", *arguments]


class Failed(RuntimeError):
    """The restore ended otherwise than it should."""


class Restoring:
    """A running restore. ``at`` gives the seconds from the start of the process to each kind of event, when first seen."""

    def __init__(
        self, *arguments: str, env: Mapping[str, str], on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.at: dict[str, float] = {}
        self.first: dict[str, dict[str, Any]] = {}
        self._on_event = on_event
        self._changed = threading.Condition()
        self._ended = False
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command("restore", "--json", *arguments), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=dict(env)
        )
        self._listener = threading.Thread(target=self._listen, name="events", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                event = json.loads(line)
                with self._changed:
                    self.at.setdefault(event["event"], time.monotonic() - self.started)
                    self.first.setdefault(event["event"], event)
                    self._changed.notify_all()
                if self._on_event is not None:
                    self._on_event(event)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, event: str) -> dict[str, Any]:
        """The first event of this kind. Raises ``Failed`` where the restore ends without one."""
        with self._changed:
            self._changed.wait_for(lambda: event in self.first or self._ended, _PATIENCE_SECONDS)
        if event not in self.first:
            raise Failed(f"active-restore said no {event!r}: {self.first.get('error')}")
        return self.first[event]

    def finish(self) -> float:
        """Seconds from start to end. Raises ``Failed`` unless everything was restored."""
        code = self.process.wait(_PATIENCE_SECONDS)
        seconds = time.monotonic() - self.started
        self._listener.join()
        if code:
            raise Failed(f"active-restore ended with {code}: {self.first.get('error')}")
        return seconds

    def memory(self) -> dict[str, int]:
        """Bytes of the agent's own memory now, and at most so far (``VmRSS``, ``VmHWM``)."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return {name: int(fields[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM")}

    def stop(self) -> None:
        """End it, wherever it is."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._listener.join()


@contextlib.contextmanager
def restoring(
    *arguments: str, env: Mapping[str, str], on_event: Callable[[dict[str, Any]], None] | None = None
) -> Iterator[Restoring]:
    """A restore that is over, or ended, when the context is left."""
    running = Restoring(*arguments, env=env, on_event=on_event)
    try:
        yield running
    finally:
        running.stop()
        if running.process.returncode:
            end_orphans()
