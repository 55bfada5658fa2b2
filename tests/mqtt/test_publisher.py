"""What a restore tells a real broker, over a good line and over bad ones."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jsonschema
import pytest

from active_restore.errors import Interrupted
from active_restore.mqtt.payloads import Format, RangeSum, schema
from active_restore.mqtt.publisher import Publisher
from active_restore.mqtt.settings import Broker, Protocol, tls_context
from active_restore.mqtt.topics import KINDS, RETAINED
from active_restore.restore.progress import Progress
from tests.kernel.waiting import wait_until
from tests.mqtt import samples
from tests.mqtt.broker import free_port, mosquitto
from tests.mqtt.certificates import Authority
from tests.mqtt.ear import Ear
from tests.mqtt.samples import DONE, FAULT, PLANNED, PROGRESS, READY, REFUSED, SCHEMAS, settings, status

if TYPE_CHECKING:
    from tests.mqtt.broker import Mosquitto
    from tests.mqtt.relay import Relay

ROOT = Path(__file__).parents[2]


def tell_all(publisher: Publisher) -> None:
    """A whole restore with a fault and a refused file."""
    for event in (PLANNED, READY, FAULT, Progress(status(waiting=2)), REFUSED, DONE):
        publisher.event(event)


@pytest.mark.parametrize("how", get_args(Format))
@pytest.mark.parametrize("protocol", get_args(Protocol))
def test_everything_is_told(broker: Mosquitto, ear: Ear, how: Format, protocol: Protocol) -> None:
    address = Broker("127.0.0.1", broker.port, protocol=protocol)
    with Publisher(settings(0, broker=address, format=how), samples.TARGET) as publisher:
        ear.until("state", lambda state: state.online and state.phase == "planning")
        tell_all(publisher)
        ear.until("faults", lambda faults: faults.waiting_total == 2)
    report = ear.until("report")
    assert (report.outcome, report.files, report.refused, report.faults) == ("partly", 9, 1, 1)
    assert report.refused_files[0].path == "dir/\\xff\x1b[2Jname\n"
    assert (report.refused_files[0].errno_name, report.longest_wait_ms) == ("EIO", 3.25)
    assert report.ready_after_s == 0.5
    last = ear.until("state", lambda state: not state.online)
    assert last.phase == "done"
    assert [step.phase for step in last.timeline] == ["planning", "laying", "restoring", "done"]
    assert ear.until("progress", lambda progress: progress.waiting == 2).percent == 50.0
    assert ear.of("progress")[-1].decoded().longest_wait_ms == 3.25
    assert ear.of("progress")[-1].decoded().ranges == RangeSum(2, 40, 30, 20)
    waits = [heard.decoded().waiting_total for heard in ear.of("faults")]
    assert (waits[-1], waits.count(0) <= 2) == (0, True), "the end of the waits is told, and once"
    for heard in ear.heard:
        assert heard.topic.startswith("active-restore/web1/")
        assert heard.content_type == (None if protocol == "3.1.1" else f"application/{how}")
        if how == "json":
            jsonschema.validate(json.loads(heard.payload), json.loads((SCHEMAS / f"{heard.kind}.json").read_text()))
    with Ear(broker.port) as late:
        wait_until(lambda: {heard.kind for heard in late.heard} == set(RETAINED), "retained messages")
        assert all(heard.retained for heard in late.heard)


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_schemas_are_those_of_the_code(kind: str) -> None:
    file = SCHEMAS / f"{kind}.json"
    assert json.loads(file.read_text()) == schema(kind), f"{file} is old; run: python -m tests.mqtt.test_publisher"


def test_waits_are_told_in_batches(ear: Ear, broker: Mosquitto) -> None:
    with Publisher(settings(broker.port, faults_interval_s=0.2), samples.TARGET) as publisher:
        publisher.event(Progress(status(waiting=50)))
        for number in range(1000):
            publisher.event(dataclasses.replace(FAULT, waited_ms=float(number)))
        faults = ear.until("faults", lambda faults: faults.served_total)
        assert (faults.waiting_total, len(faults.waiting)) == (50, 32)
        assert faults.waiting[0].waited_ms == 61.5
        assert len(faults.served) == 16
        wait_until(lambda: sum(h.decoded().served_total for h in ear.of("faults")) == 1000, "all waits")
        assert sum(heard.decoded().served_ms for heard in ear.of("faults")) == 999 * 500
        assert ear.of("faults")[-1].decoded().faults_total == 1000
        assert max(wait.waited_ms for heard in ear.of("faults") for wait in heard.decoded().served) == 999.0
        publisher.event(PROGRESS)
        ear.until("faults", lambda faults: faults.waiting_total == 0, after=len(ear.heard))


def test_an_interrupted_restore(ear: Ear, broker: Mosquitto) -> None:
    error = Interrupted("interrupted at http://bob:s3cret@store/", "go on")
    with contextlib.suppress(Interrupted), Publisher(settings(broker.port), samples.TARGET) as publisher:
        publisher.begin("1f", samples.SOURCE, Nobody())
        publisher.event(PROGRESS)
        raise error
    report = ear.until("report")
    assert (report.outcome, report.error.code, report.restore_id) == ("interrupted", "interrupted", "1f")
    assert report.source == "restic:rest:http://bob@store/repo"
    assert not any(b"s3cret" in heard.payload for heard in ear.heard)


class Nobody:
    """Commands that are never given."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


_AGENT = """
import sys, time
from active_restore.mqtt.publisher import Publisher
from tests.mqtt import samples
with Publisher(samples.settings(int(sys.argv[1])), samples.TARGET) as publisher:
    publisher.event(samples.PROGRESS)
    sys.stdin.read()
"""


def test_the_last_will(ear: Ear, broker: Mosquitto) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agent'}"}
    argv = [sys.executable, "-c", _AGENT, str(broker.port)]
    with subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE) as child:
        ear.until("state", lambda state: state.online and state.phase == "restoring")
        child.send_signal(signal.SIGKILL)
    lost = ear.until("state", lambda state: not state.online)
    assert (lost.phase, lost.target) == ("lost", "/srv/t\\xff")
    with Publisher(settings(broker.port), samples.TARGET):
        ear.until("state", lambda state: state.online, after=len(ear.heard))


def test_a_broker_that_comes_later_and_goes_and_comes(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    broker.stop()
    with Publisher(settings(broker.port), samples.TARGET) as publisher:
        wait_until(lambda: "cannot be used (Connection refused)" in caplog.text, "the failure in the log")
        publisher.event(Progress(status(1)))
        publisher.event(Progress(status(2)))
        broker.start()
        with Ear(broker.port) as ear:
            assert ear.until("progress").files_done == 2, "only the newest state is kept"
        broker.stop()
        wait_until(lambda: caplog.text.count("cannot be used") == 2, "the second failure")
        publisher.event(Progress(status(3)))
        broker.start()
        with Ear(broker.port) as ear:
            ear.until("state", lambda state: state.online)
            assert ear.until("progress").files_done == 3
    assert caplog.text.count("is reached again") == 2


def test_a_broker_that_is_too_slow_gets_the_newest(line: Relay, ear: Ear) -> None:
    """While the line stands still everything is taken without waiting; then few messages say it all."""
    with Publisher(settings(line.port, progress_interval_s=0.01), samples.TARGET) as publisher:
        ear.until("state")
        line.still = True
        for _ in range(200):
            for done in range(9):
                publisher.event(Progress(status(done)))
            publisher.event(FAULT)
        publisher.event(Progress(status(9)))
        line.still = False
        ear.until("progress", lambda progress: progress.files_done == 9)
        wait_until(lambda: sum(h.decoded().served_total for h in ear.of("faults")) == 200, "all faults")
    assert len(ear.of("progress")) < 100


def test_a_broker_that_never_answers() -> None:
    """It takes connections and says nothing: leaving is not held up by it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        with Publisher(settings(listener.getsockname()[1]), samples.TARGET) as publisher:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(1)
                tell_all(publisher)
                publisher.__exit__(None, None, None)
    wait_until(lambda: "mqtt" not in {thread.name for thread in threading.enumerate()}, "the end of the thread")


def test_a_line_that_stands_still_at_the_end(line: Relay, ear: Ear) -> None:
    with Publisher(settings(line.port), samples.TARGET) as publisher:
        ear.until("state")
        line.still = True
        tell_all(publisher)
    wait_until(lambda: "mqtt" not in {thread.name for thread in threading.enumerate()}, "the end of the thread")


def test_a_dead_broker_is_not_waited_for() -> None:
    with Publisher(settings(free_port()), samples.TARGET) as publisher:
        tell_all(publisher)


def test_a_flapping_line(line: Relay, ear: Ear) -> None:
    with Publisher(settings(line.port), samples.TARGET) as publisher:
        ear.until("state")
        line.rude = True
        line.cut()
        wait_until(lambda: line.connections >= 3, "two more attempts")
        line.rude = False
        publisher.event(Progress(status(7)))
        ear.until("progress", lambda progress: progress.files_done == 7)


@pytest.mark.parametrize("lines", [["max_connections 1"], ["message_size_limit 20"], ["max_packet_size 64"]], ids="".join)
def test_a_broker_that_is_full(tmp_path: Path, lines: list[str]) -> None:
    """It lets nobody else in, or takes nothing: events are taken all the same, and leaving is not held up."""
    with mosquitto(tmp_path / "broker", *lines) as broker, Ear(broker.port):
        with Publisher(settings(broker.port), samples.TARGET) as publisher:
            for done in range(10):
                publisher.event(Progress(status(done)))
            tell_all(publisher)
        wait_until(lambda: "mqtt" not in {thread.name for thread in threading.enumerate()}, "the end of the thread")


def test_a_broker_without_mqtt_5(line: Relay, ear: Ear) -> None:
    line.old = True
    with Publisher(settings(line.port), samples.TARGET) as publisher:
        tell_all(publisher)
        ear.until("state")
    assert ear.until("report").outcome == "partly"
    assert {heard.content_type for heard in ear.heard} == {None}
    assert line.connections == 2


def test_passwords(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    users = tmp_path / "users"
    users.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", users, "bob", "s3cret"], check=True)
    with mosquitto(tmp_path / "broker", "allow_anonymous false", f"password_file {users}") as broker:
        caplog.set_level(logging.DEBUG)
        refused = Broker("127.0.0.1", broker.port, "bob", "wr0ng")
        with Publisher(settings(0, broker=refused), samples.TARGET) as publisher:
            wait_until(lambda: "Not authorized" in caplog.text, "the refusal in the log")
            tell_all(publisher)
        right = Broker("127.0.0.1", broker.port, "bob", "s3cret")
        with Ear(broker.port, user="bob", password="s3cret") as ear:
            with Publisher(settings(0, broker=right), samples.TARGET) as publisher:
                tell_all(publisher)
                ear.until("state")
            ear.until("report")
    assert "wr0ng" not in caplog.text + repr(refused) + str(refused)
    assert "s3cret" not in caplog.text + repr(right)


def tls_lines(authority: Authority, address: str = "127.0.0.1") -> list[str]:
    server = authority.sign("server", address)
    return [f"cafile {authority.file}", f"certfile {server.cert}", f"keyfile {server.key}"]


def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    ours = authority.sign("agent")
    lines = [*tls_lines(authority), "require_certificate true"]
    with mosquitto(tmp_path / "broker", *lines, f"listener {(plain := free_port())} 127.0.0.1") as broker:
        context = tls_context(str(authority.file), str(ours.cert), str(ours.key))
        address = Broker("127.0.0.1", broker.port, tls=context)
        with Ear(plain) as ear, Publisher(settings(0, broker=address), samples.TARGET) as publisher:
            publisher.event(PROGRESS)
            ear.until("progress")


@pytest.mark.parametrize("case", ["other authority", "system's authorities", "other name", "no client certificate"])
def test_tls_that_must_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str) -> None:
    authority, other = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    lines = tls_lines(authority, "127.0.0.2" if case == "other name" else "127.0.0.1")
    if case == "no client certificate":
        lines.append("require_certificate true")
    trusted = {"other authority": str(other.file), "system's authorities": None}.get(case, str(authority.file))
    with mosquitto(tmp_path / "broker", *lines, f"listener {(plain := free_port())} 127.0.0.1") as broker:
        address = Broker("127.0.0.1", broker.port, tls=tls_context(trusted))
        with Ear(plain) as ear, Publisher(settings(0, broker=address), samples.TARGET) as publisher:
            wait_until(lambda: "cannot be used" in caplog.text, "the failure in the log")
            tell_all(publisher)
        assert ear.heard == []
    if case != "no client certificate":
        assert "certificate verify failed" in caplog.text


def _write_schemas() -> None:
    for kind in KINDS:
        (SCHEMAS / f"{kind}.json").write_text(json.dumps(schema(kind), indent=1) + "\n")


if __name__ == "__main__":
    _write_schemas()
