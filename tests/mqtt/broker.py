"""Debian's mosquitto on free ports of the loopback interface."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Mosquitto:
    """A broker that can be stopped and started again on the same ports."""

    def __init__(self, place: Path, *lines: str) -> None:
        self.port = free_port()
        self.ws_port = free_port()
        self._place = place
        self._config = place / "mosquitto.conf"
        self._log = place / "mosquitto.log"
        place.mkdir(parents=True, exist_ok=True)
        # As root it would become "mosquitto", who may not read what a test makes.
        self._config.write_text(
            "\n".join(
                [
                    "user root",
                    "allow_anonymous true",
                    "max_queued_messages 100000",
                    f"listener {self.port} 127.0.0.1",
                    *lines,
                    f"listener {self.ws_port} 127.0.0.1",
                    "protocol websockets",
                    "",
                ]
            )
        )
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def program(self) -> str:
        """Its path."""
        return shutil.which("mosquitto") or "/usr/sbin/mosquitto"

    @property
    def pid(self) -> int:
        """Of the broker that runs."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Returns when it takes connections."""
        with self._log.open("ab") as log:
            self._child = subprocess.Popen([self.program, "-c", self._config], stdout=log, stderr=log)
        wait_until(self.answers, f"mosquitto answers; see {self._log}")

    def answers(self) -> bool:
        """Whether it takes connections."""
        return _accepts(self.port) and _accepts(self.ws_port)

    def stop(self) -> None:
        """As a crash would: nobody is told."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def mosquitto(place: Path, *lines: str) -> Iterator[Mosquitto]:
    """A broker while the block runs; ``lines`` are added to the configuration of its first listener."""
    broker = Mosquitto(place, *lines)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
