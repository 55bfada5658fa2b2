"""Requests at a time to one source: counted by a real server, over threads and processes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from active_restore.store.location import Location
from active_restore.store.turnstile import Turnstile
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WORKER = """
import json, sys, threading
from active_restore.store.location import Location
store = Location.from_recipe(json.loads(sys.argv[1])).open()
threads = [threading.Thread(target=store.get, args=("config", 10)) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
"""


class Meter(ThreadingHTTPServer):
    """Holds every request until the gate is open, and knows how many there were at a time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.gate = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = self.served = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Meter

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        meter = self.server
        with meter.lock:
            meter.now += 1
            meter.most = max(meter.most, meter.now)
        meter.gate.wait(30)
        with meter.lock:
            meter.now -= 1
            meter.served += 1
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")


@pytest.fixture
def meter() -> Iterator[Meter]:
    meter = Meter()
    thread = threading.Thread(target=meter.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield meter
    meter.gate.set()
    meter.shutdown()
    thread.join()
    meter.server_close()


def place(meter: Meter, tmp_path: Path, slots: int) -> Location:
    return Location("rest", meter.url, (), Turnstile(str(tmp_path / "connections"), slots))


@contextlib.contextmanager
def worker(location: Location, threads: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", _WORKER, json.dumps(location.recipe()), str(threads)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("slots", [1, 3])
def test_threads_share(meter: Meter, tmp_path: Path, slots: int) -> None:
    store = place(meter, tmp_path, slots).open()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(store.get, "config", 10) for _ in range(16)]
        wait_until(lambda: meter.now == slots, "all slots are in use")
        meter.gate.set()
        assert {bytes(answer.result(30)) for answer in answers} == {b"x"}
    assert (meter.most, meter.served) == (slots, 16)
    store.close()


def test_no_limit(meter: Meter, tmp_path: Path) -> None:
    store = place(meter, tmp_path, 0).open()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(store.get, "config", 10) for _ in range(8)]
        wait_until(lambda: meter.now == 8, "all are under way")
        meter.gate.set()
        assert all(answer.result(30) for answer in answers)
    assert not (tmp_path / "connections").exists()


def test_one_slot_is_kept_for_those_who_wait(meter: Meter, tmp_path: Path) -> None:
    location = place(meter, tmp_path, 2)
    store = location.open()
    with worker(location, 4) as process, ThreadPoolExecutor(1) as pool:
        wait_until(lambda: meter.now == 1, "the background is under way")
        answer = pool.submit(store.get, "config", 10)
        wait_until(lambda: meter.now == 2, "a task's request does not wait for it")
        meter.gate.set()
        assert bytes(answer.result(30)) == b"x"
        assert process.wait(30) == 0
    assert (meter.most, meter.served) == (2, 5)
    store.close()


def test_a_killed_process_gives_its_slot_back(meter: Meter, tmp_path: Path) -> None:
    location = place(meter, tmp_path, 1)
    store = location.open()
    with worker(location, 1) as process, ThreadPoolExecutor(1) as pool:
        wait_until(lambda: meter.now == 1, "the background is under way")
        answer = pool.submit(store.get, "config", 10)
        process.kill()
        process.wait()
        wait_until(lambda: meter.now == 2, "the slot is free, though the server still answers the dead")
        meter.gate.set()
        assert bytes(answer.result(30)) == b"x"
    store.close()
