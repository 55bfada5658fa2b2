"""The web page in a real browser, against a real broker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from tests.kernel.waiting import wait_until
from tests.mqtt.broker import Mosquitto, mosquitto
from tests.mqtt.browser import browser
from tests.mqtt.ear import Ear
from tests.mqtt.machines import faults, progress, publish, publish_some, report, state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.mqtt.browser import Page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "dashboard/index.html"
MACHINES = 500


def text(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)}).textContent"


def row(node: str) -> str:
    return f"[...document.querySelectorAll('details')].find((row) => row.innerText.startsWith({json.dumps(node)}))"


def row_text(page: Page, node: str, words: str) -> None:
    page.until(f"{row(node)}?.textContent.includes({json.dumps(words)})")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all: it takes a second to start."""
    with browser(tmp_path_factory.mktemp("browser") / "profile") as page:
        yield page


@pytest.fixture
def page(shared: Page, broker: Mosquitto) -> Iterator[Page]:
    """The page, connected; nothing went wrong in its scripts."""
    shared.open(f"{PAGE.as_uri()}#ws://127.0.0.1:{broker.ws_port}")
    shared.until(f"{text('#line')} === 'connected'")
    yield shared
    assert shared.errors == []


def test_it_loads_nothing() -> None:
    source = PAGE.read_text()
    assert "default-src 'none'" in source
    links = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", re.sub(r"(?m)^//.*$|<!--.*?-->", "", source)))
    assert links == {"//broker.example:443/mqtt"}
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", source)


def test_machines_and_their_details(page: Page, ear: Ear) -> None:
    publish_some(ear)
    publish(ear, "db1", "faults", faults())
    publish(ear, "db1", "progress", progress(waiting=2, percent=10.0))
    page.until(f"{text('#machines')} === '5'")
    page.until(f"{text('#working')} === '2' && {text('#waiting')} === '2' && {text('#trouble')} === '2'")
    page.until(f"{text('#rate')} === '10 MiB/s'")
    row_text(page, "web1", "50.0% of 1 GiB5 MiB/s1 min 43 s")
    row_text(page, "db1", "2 tasks waiting, 4.1 s for db/base/1")
    row_text(page, "bad1", "failed: the index is damaged")
    row_text(page, "old1", "done: 1,000 files, 1 GiB in 3 min 20 s")
    page.until(
        "[...document.querySelectorAll('summary .name')].map((n) => n.textContent).join() === 'bad1,gone1,db1,web1,old1'"
    )
    page.run(f"{row('db1')}.open = true")
    row_text(page, "db1", "postgres (12): 4.1 s for db/base/1")
    row_text(page, "db1", "planning, 4 s")
    assert page.run(f"{row('db1')}.querySelectorAll('.steps i').length") == 2
    assert "failed: the index is damaged" in page.run(text("#events"))


def test_a_machine_from_beginning_to_end(page: Page, ear: Ear) -> None:
    publish(ear, "web1", "state", state("web1", phase="laying"))
    row_text(page, "web1", "laying")
    publish(ear, "web1", "state", state("web1"))
    ear.say("active-restore/web1/progress", msgpack.packb(progress(percent=33.3)), retain=True)
    row_text(page, "web1", "33.3%")
    publish(ear, "web1", "state", state("web1", online=False, phase="lost"))
    row_text(page, "web1", "lost")
    publish(ear, "web1", "state", state("web1"))
    publish(ear, "web1", "progress", progress(phase="done", percent=100.0))
    publish(ear, "web1", "report", report("web1", refused=1, refused_files=[{"path": "a/b", "errno": 5, "detail": "damaged"}]))
    publish(ear, "web1", "state", state("web1", online=False, phase="done"))
    row_text(page, "web1", "1 file could NOT be restored")
    page.run(f"{row('web1')}.open = true")
    row_text(page, "web1", "a/b: damaged")
    events = page.run("[...document.querySelectorAll('#events li span:last-child')].map((line) => line.textContent)")
    assert [line.split(":")[0] for line in events] == ["done", "restoring", "lost", "restoring", "laying"]
    ear.say("active-restore/web1/state", b"", retain=True)
    ear.say("active-restore/web1/progress", b"", retain=True)
    ear.say("active-restore/web1/report", b"", retain=True)
    page.until(f"{text('#machines')} === '0'")


def test_finding_and_filtering(page: Page, ear: Ear) -> None:
    publish_some(ear)
    page.until("document.querySelectorAll('details').length === 5")
    page.run("document.querySelector('[data-show=trouble]').click()")
    page.until("document.querySelectorAll('details').length === 2")
    page.run("document.querySelector('[data-show=all]').click()")
    page.run(
        "(() => { const box = document.getElementById('search'); box.value = 'WEB'; box.dispatchEvent(new Event('input')); })()"
    )
    page.until("document.querySelectorAll('details').length === 1")


def test_commands_from_the_page(page: Page, ear: Ear) -> None:
    publish(ear, "web1", "state", state("web1", accepts_commands=True))
    publish(ear, "web2", "state", state("web2"))
    page.until("document.querySelectorAll('details').length === 2")
    page.run(f"{row('web1')}.open = {row('web2')}.open = true")
    page.until(f"{row('web1')}.querySelector('.more button') !== null")
    page.until(f"{row('web2')}.querySelector('.more dl') !== null")
    assert page.run(f"{row('web2')}.querySelector('.more button') === null")
    page.run(f"{row('web1')}.querySelector('.more button').click()")
    wait_until(lambda: ear.of("command"), "the command")
    assert (ear.of("command")[0].topic, ear.of("command")[0].payload) == ("active-restore/web1/command", b'{"command":"pause"}')


def test_on_a_phone(page: Page, ear: Ear) -> None:
    publish_some(ear)
    publish(ear, "a-very-long-name-of-a-machine-that-no-phone-could-show-in-one-line", "state", state("x", phase="x" * 300))
    page.until("document.querySelectorAll('details').length === 6")
    page.run("document.querySelectorAll('details').forEach((row) => { row.open = true; })")
    try:
        for width in (320, 390, 768):
            page.resize(width, 800)
            page.until(f"innerWidth === {width}")
            assert page.run("document.documentElement.scrollWidth") <= width
            cells = "[...document.querySelectorAll('summary > *')]"
            page.until(f"{cells}.every((cell) => cell.getBoundingClientRect().right <= innerWidth)")
            assert page.run("parseFloat(getComputedStyle(document.body).fontSize)") >= 14
    finally:
        page.resize(1280, 900)


def test_who_may_write_to_the_broker_cannot_break_the_page(page: Page, ear: Ear) -> None:
    evil = "<img src=x onerror='document.title=1'><script>document.title=2</script>"
    numbers: dict[str, Any] = {"percent": "1", "bytes_total": -5, "waiting": [1], "lanes": "abc", "eta_s": 1e308, "time": 1e300}
    publish(
        ear,
        evil.replace("/", ""),
        "state",
        state(evil, phase=evil, target=evil, timeline=[{"phase": evil, "time": -1}, None, 3]),
    )
    publish(ear, "b", "progress", progress(phase="restoring", **numbers))
    publish(ear, "b", "state", state("b", timeline="x", source={}, interceptor=7))
    publish(ear, "b", "faults", {"version": 1, "waiting": [None, {"path": 5}], "served": {}})
    publish(ear, "b", "report", report("b", error={"message": evil}, refused_files=[None, {"path": evil}]))
    bad = [
        b"{",
        b"{}",
        b"null",
        b"\xff",
        b"[" * 9000,
        b'{"version":2}',
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 9000,
        b"x" * 300_000,
    ]
    for number, payload in enumerate(bad):
        ear.say(f"active-restore/bad{number}/progress", payload, retain=True)
    page.until(f"stats.dropped === {len(bad)}")
    page.until("document.querySelectorAll('details').length === 2")
    page.run("document.querySelectorAll('details').forEach((row) => { row.open = true; })")
    row_text(page, "b", "<img src=x")
    publish(ear, "c", "progress", progress())
    row_text(page, "c", "50.0%")
    assert page.run("document.title") == "Active Restore: fleet"
    assert page.run("document.images.length") == 0


def test_the_broker_goes_and_comes(page: Page, broker: Mosquitto) -> None:
    broker.stop()
    page.until(f"{text('#line')}.includes('no connection, next try in')")
    assert page.run("document.getElementById('line').className") == ""
    broker.start()
    with Ear(broker.port) as ear:
        publish_some(ear)
        page.until(f"{text('#line')} === 'connected'")
        page.until(f"{text('#machines')} === '5'")
    page.errors.clear()  # the browser's own lines about refused connections


def test_passwords(shared: Page, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", users, "bob", "s3cret"], check=True)
    with mosquitto(tmp_path / "broker", "allow_anonymous false", f"password_file {users}") as broker:
        shared.open(f"{PAGE.as_uri()}#ws://127.0.0.1:{broker.ws_port}&user=bob")
        for password, said in (("wr0ng", "not allowed"), ("s3cret", "connected")):
            shared.run(f"document.forms[0].elements.password.value = {json.dumps(password)}")
            shared.run("document.forms[0].requestSubmit()")
            shared.until(f"{text('#line')}.startsWith({json.dumps(said)})")
        assert shared.run("document.forms[0].hidden")
        assert shared.run("localStorage.length + sessionStorage.length") == 0


@contextlib.contextmanager
def simulated(port: int, machines: int) -> Iterator[subprocess.Popen[bytes]]:
    """That many machines in a process of their own."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agent'}"}
    argv = [sys.executable, "-m", "tests.mqtt.simulation", str(port), str(machines)]
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            assert child.stdin is not None
            child.stdin.close()
    assert child.returncode == 0


def test_five_hundred_machines(page: Page, broker: Mosquitto) -> None:
    with simulated(broker.port, MACHINES):
        page.until(f"machines.size === {MACHINES}")
        before = page.run("stats.messages")
        page.until(f"stats.messages > {before + 5 * MACHINES}")
        # Whatever came is on the page at the next drawing: nothing piles up.
        page.until("[...machines.values()].filter((machine) => machine.dirty).length < 400")
        assert page.run("document.querySelectorAll('details').length") == MACHINES
        assert page.run("stats.dropped") == 0
        assert page.heap_bytes() < 64 << 20
        print(measured(page))


def measured(page: Page) -> str:
    """Figures for people; this machine may be busy."""
    lags = sorted(page.run("stats.lagsMs"))
    drawn, took, worst = page.run("[stats.drawn, stats.drawMs, stats.worstDrawMs]")
    return (
        f"page: {len(lags):,} messages, lag p50 {lags[len(lags) // 2]:.0f} ms, p99 {lags[len(lags) * 99 // 100]:.0f} ms; "
        f"{took / drawn:.0f} ms a drawing, the worst {worst:.0f} ms; heap {page.heap_bytes() / (1 << 20):.1f} MiB"
    )
