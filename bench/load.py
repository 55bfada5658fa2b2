"""``python -m bench.load [MACHINES [SECONDS]]``: what a fleet costs broker and viewers, and what publishing costs an agent."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from active_restore.mqtt.publisher import Publisher
from active_restore.mqtt.settings import Broker, Settings
from active_restore.mqtt.topics import Topics
from tests.mqtt.broker import mosquitto
from tests.mqtt.browser import browser, resident_bytes
from tests.mqtt.samples import FAULT, PROGRESS, TARGET
from tests.mqtt.test_page import PAGE, measured, simulated

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_FAULTS_PER_S = 100


def cpu_seconds(pid: int) -> float:
    """Processor time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def fleet(place: Path, machines: int, seconds: float) -> None:
    """Broker, page and ``fleet --json`` while that many machines publish once a second."""
    with mosquitto(place / "broker") as broker, browser(place / "profile") as page:
        page.open(f"{PAGE.as_uri()}#ws://127.0.0.1:{broker.ws_port}")
        page.until("listener.up")
        argv = [
            sys.executable,
            "-c",
            "from active_restore.cli.main import run; run()",
            "fleet",
            "--json",
            "--broker",
            f"mqtt://127.0.0.1:{broker.port}",
        ]
        with simulated(broker.port, machines), subprocess.Popen(argv, stdout=subprocess.DEVNULL) as viewer:
            page.until(f"machines.size === {machines}")
            page.run("stats.lagsMs.length = stats.drawn = stats.drawMs = stats.worstDrawMs = 0")
            began, pids = time.monotonic(), {"broker": broker.pid, "fleet": viewer.pid}
            before = {name: cpu_seconds(pid) for name, pid in pids.items()}
            heap = page.heap_bytes()
            threading.Event().wait(seconds)
            took = time.monotonic() - began
            print(f"{machines} machines, {took:.0f} s, {os.getloadavg()[0]:.1f} tasks ran on {os.cpu_count()} processors")
            print(f"{measured(page)} (at the beginning {heap / (1 << 20):.1f} MiB)")
            for name, pid in pids.items():
                share = (cpu_seconds(pid) - before[name]) / took
                print(f"{name}: {share:.1%} of a processor, {resident_bytes(pid) / (1 << 20):.0f} MiB")
            viewer.terminate()


def publishing(place: Path, seconds: float) -> None:
    """What an agent pays: processor time of a process that reports to a publisher, and of the same without one."""
    with mosquitto(place / "own") as broker:
        settings = Settings(Broker("127.0.0.1", broker.port), Topics("active-restore", "bench"))
        with Publisher(settings, TARGET) as publisher:
            told = _report(publisher, seconds)
        alone = _report(None, seconds)
    print(f"publisher: {(told - alone) / seconds:.2%} of a processor at one status and {_FAULTS_PER_S} faults a second")


def _report(publisher: Publisher | None, seconds: float) -> float:
    began, clock = time.process_time(), threading.Event()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if publisher is not None:
            publisher.event(PROGRESS)
        for _ in range(10):
            clock.wait(0.1)
            for _ in range(_FAULTS_PER_S // 10):
                if publisher is not None:
                    publisher.event(FAULT)
    return time.process_time() - began


if __name__ == "__main__":
    _machines = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    _seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    with tempfile.TemporaryDirectory() as _place:
        publishing(Path(_place), min(_seconds, 20.0))
        fleet(Path(_place), _machines, _seconds)
