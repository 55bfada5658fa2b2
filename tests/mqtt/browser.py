"""Debian's Chromium without a screen, driven over a pipe (chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kernel.waiting import DEADLINE_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


class Page:
    """One page. What its scripts throw or log as errors is in ``errors``."""

    def __init__(self, to: int, fro: int) -> None:
        self._to = to
        self._from = os.fdopen(fro, "rb")
        self._number = 0
        self._session: str | None = None
        self._target: str | None = None
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        """Go there in a fresh window of this size; the one before is closed."""
        old, self._session = self._target, None
        if old is not None:
            self.call("Target.closeTarget", targetId=old)
        self._target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        self.errors.clear()
        for domain in ("Runtime", "Log", "Page", "Performance"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call("Page.navigate", url=url)
        wait_until(lambda: self.run("document.readyState") == "complete", "the page is loaded")

    def resize(self, width: int, height: int) -> None:
        """As a phone is turned, or a window pulled."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def run(self, script: str) -> Any:
        """The value of an expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """The value of an expression once it is true."""
        found: list[Any] = []

        def look() -> bool:
            found[:] = [self.run(script)]
            return bool(found[0])

        wait_until(look, script)
        return found[0]

    def heap_bytes(self) -> float:
        """Memory of its scripts, after a collection."""
        self.call("HeapProfiler.collectGarbage")
        metrics = {one["name"]: one["value"] for one in self.call("Performance.getMetrics")["metrics"]}
        return float(metrics["JSHeapUsedSize"])

    def picture(self, file: Path) -> None:
        """What it looks like."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """One call of the protocol."""
        self._number += 1
        number = self._number
        answers = self._answers[number] = queue.SimpleQueue()
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        left = memoryview(json.dumps(message).encode() + b"\0")
        while left:
            left = left[os.write(self._to, left) :]
        answer = answers.get(timeout=DEADLINE_S)
        assert "error" not in answer, answer["error"]
        result: dict[str, Any] = answer["result"]
        return result

    def close(self) -> None:
        """Nothing follows."""
        os.close(self._to)
        self._reader.join()

    def _read(self) -> None:
        buffer = b""
        with self._from:
            while chunk := os.read(self._from.fileno(), 1 << 20):
                *messages, buffer = (buffer + chunk).split(b"\0")
                for message in messages:
                    self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.pop(message["id"]).put(message)
        elif message.get("sessionId") != self._session:
            pass  # of a window that is closed
        elif message["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(message["params"]["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.errors.append(message["params"]["entry"]["text"])


@contextlib.contextmanager
def browser(place: Path) -> Iterator[Page]:
    """A browser with one page while the block runs; its profile is in ``place``."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # The protocol's pipes are descriptors 3 and 4 of the browser.
    shell = f'exec 3<&{to_read} 4>&{from_write}; exec chromium "$@"'
    argv = ["bash", "-c", shell, "chromium", *_FLAGS, f"--user-data-dir={place}"]
    with (place.parent / "chromium.log").open("ab") as log:
        child = subprocess.Popen(argv, pass_fds=(to_read, from_write), stdout=log, stderr=log, start_new_session=True)
    os.close(to_read)
    os.close(from_write)
    page = Page(to_write, from_read)
    try:
        yield page
        with contextlib.suppress(OSError, KeyError):
            page.call("Browser.close")
    finally:
        _end(child)
        page.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        child.wait()


def resident_bytes(pid: int) -> int:
    """Memory of a process and of all below it, what they share counted once for each (an upper bound)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident_bytes(int(child)) for child in below)
