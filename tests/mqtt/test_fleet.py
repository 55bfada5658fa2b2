"""Many machines, seen from one terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec
import pexpect
import pytest

from active_restore.cli.main import main
from active_restore.cli.printers.fleet_lines import PlainLines
from active_restore.mqtt.digest import Digest
from active_restore.mqtt.fleet import Fleet
from active_restore.mqtt.topics import KINDS
from tests.cli.machine import ROOT, Command
from tests.mqtt import machines, samples
from tests.mqtt.broker import free_port
from tests.mqtt.machines import faults, progress, publish, publish_some, report, state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.mqtt.broker import Mosquitto
    from tests.mqtt.ear import Ear

ARGV = [sys.executable, "-c", "from active_restore.cli.main import run; run()", "fleet", "--broker"]


@pytest.fixture
def env(tmp_path: Any) -> dict[str, str]:
    absent = str(tmp_path / "absent.toml")
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT / "agent"),
        "ACTIVE_RESTORE_CONFIG": absent,
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
    }


def argv(broker: Mosquitto, *more: str) -> list[str]:
    return [*ARGV, f"mqtt://127.0.0.1:{broker.port}", *more]


def once(broker: Mosquitto, env: dict[str, str]) -> list[str]:
    ended = subprocess.run(argv(broker, "--once"), env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def test_once(broker: Mosquitto, ear: Ear, env: dict[str, str]) -> None:
    publish_some(ear)
    summary, header, *rows = once(broker, env)
    assert summary.rstrip() == "5 machines, 2 restoring, 1 LOST, 1 FAILED, 2 tasks waiting, 10.0 MiB/s"
    assert header.split() == ["machine", "phase", "rate", "left", "waiting"]
    assert [row.split()[:2] for row in rows] == [
        ["bad1", "failed"],
        ["gone1", "lost"],
        ["db1", "restoring"],
        ["web1", "restoring"],
        ["old1", "done"],
    ]
    assert re.search(r"50\.0% of 1\.00 GiB +5\.00 MiB/s +1 min 43 s", rows[3])
    assert "done: 1,000 files, 1.00 GiB in 3 min 20 s, 3 faults served" in rows[4]


def test_nobody_is_there(broker: Mosquitto, env: dict[str, str]) -> None:
    assert once(broker, env)[0].rstrip() == "0 machines, 0 restoring, 0 tasks waiting, 0 B/s"


@pytest.fixture
def lines(broker: Mosquitto, env: dict[str, str]) -> Iterator[pexpect.spawn[str]]:
    """The command without a terminal that can do anything."""
    program, *arguments = argv(broker)
    with pexpect.spawn(program, arguments, env={**env, "TERM": "dumb"}, encoding="utf-8", timeout=60, echo=False) as child:
        child.expect("the broker is heard")
        yield child


def test_lines(lines: pexpect.spawn[str], broker: Mosquitto, ear: Ear) -> None:
    publish(ear, "web1", "state", state("web1"))
    lines.expect_exact("web1: restoring\r\n")
    publish(ear, "web1", "faults", faults())
    publish(ear, "web1", "progress", progress(waiting=2))
    lines.expect_exact("web1: 2 tasks waiting, the longest 4.1 s for db/base/1\r\n")
    publish(ear, "web1", "progress", progress())
    lines.expect_exact("web1: no task waits any more\r\n")
    publish(ear, "web1", "report", report("web1", outcome="partly", refused=2))
    lines.expect_exact("web1: partly: 1,000 files, 1.00 GiB in 3 min 20 s, 3 faults served, 2 files could NOT be restored\r\n")
    broker.stop()
    lines.expect_exact("the broker cannot be heard: ")
    broker.start()
    lines.expect_exact("the broker is heard\r\n")
    lines.sendintr()
    lines.expect_exact("1 machine, 1 restoring, 0 tasks waiting, 5.00 MiB/s\r\n")
    lines.expect(pexpect.EOF)
    lines.wait()
    assert lines.exitstatus == 0


def test_a_line_about_all_now_and_then(capfd: pytest.CaptureFixture[str]) -> None:
    lines, now = PlainLines(), time.monotonic()
    for seconds in (1, 11, 12, 22):
        lines.draw(Fleet("x"), now + seconds, "connecting")
    assert capfd.readouterr().out == "0 machines, 0 restoring, 0 tasks waiting, 0 B/s\n" * 2


def test_live_on_a_terminal(broker: Mosquitto, ear: Ear, env: dict[str, str]) -> None:
    publish_some(ear)
    for number in range(40):
        publish(ear, f"many{number:02}", "state", state(f"many{number:02}"))
    program, *arguments = argv(broker)
    with pexpect.spawn(program, arguments, env=env, encoding="utf-8", timeout=60, dimensions=(24, 120)) as child:
        child.expect("45 machines, 42 restoring")
        child.expect("db1")
        child.expect("machines more")
        publish(ear, "gone1", "state", state("gone1"))
        child.expect("43 restoring, 1 FAILED")
        child.sendintr()
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0


def test_json(broker: Mosquitto, ear: Ear, env: dict[str, str]) -> None:
    publish(ear, "web1", "progress", progress())
    command = Command.started(argv(broker, "--json"), env)
    try:
        assert command.until("progress")["percent"] == 50.0
        ear.say("active-restore/db1/report", msgpack.packb(report("db1")))
        heard = command.until("report")
        assert (heard["node"], heard["outcome"]) == ("db1", "done")
        command.signal(signal.SIGINT)
        assert command.end() == (0, "")
    finally:
        command.kill()


HOSTILE = [
    b"", b"{", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"version": 2}', b"x" * 300_000,
    json.dumps(progress(percent=1e300)).encode(),
    json.dumps(progress(files_done=-1)).encode(),
    json.dumps(progress(version=2)).encode(),
    msgpack.packb(progress(eta_s=float("nan"))),
    msgpack.packb(progress(rate_bytes_per_s=float("inf"))),
    msgpack.packb(progress(phase=b"restoring")),
]  # fmt: skip


def test_who_may_write_to_the_broker_cannot_break_the_display(broker: Mosquitto, ear: Ear, env: dict[str, str]) -> None:
    publish(ear, "web1", "progress", progress())
    for number, payload in enumerate(HOSTILE):
        ear.say(f"active-restore/bad{number}/progress", payload, retain=True)
    evil = "\x1b[2J\nweb2: done"
    publish(ear, "evil\u202e", "state", state("x", phase=evil))
    publish(ear, "evil\u202e", "progress", progress(phase=evil, eta_s=1e18, seconds=1e18, waiting=9))
    publish(ear, "evil2", "report", report("x", error={"code": "x", "message": evil, "hint": evil}))
    out = once(broker, env)
    assert out[0].startswith("3 machines")
    assert out[-1].rstrip() == f"{len(HOSTILE) - 1} messages not understood"
    assert "\x1b" not in "".join(out)
    assert not [row for row in out if row.startswith("web2")]


def test_a_machine_is_forgotten(broker: Mosquitto, ear: Ear, env: dict[str, str]) -> None:
    publish_some(ear)
    ended = subprocess.run(argv(broker, "--forget", "gone1"), env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert once(broker, env)[0].startswith("4 machines, 2 restoring, 1 FAILED")


@pytest.mark.parametrize("more", [["--once"], ["--forget", "x"], ["--json"]], ids=" ".join)
def test_no_broker(env: dict[str, str], more: list[str]) -> None:
    command = [*ARGV, f"mqtt://127.0.0.1:{free_port()}", *more]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 15
    assert "Connection refused" in ended.stderr


def test_no_broker_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ACTIVE_RESTORE_CONFIG", "/absent.toml")
    assert main(["fleet", "--once"]) == 2
    assert "add --broker" in capsys.readouterr().err
    assert main(["fleet", "--broker", "mqtt://bob:s3cret@x"]) == 2
    assert "s3cret" not in capsys.readouterr().err


def test_the_newest_of_each_kind() -> None:
    fleet = Fleet("active-restore")
    for percent in (10.0, 20.0):
        raw = json.dumps(progress(percent=percent)).encode()
        assert fleet.take("active-restore/a/progress", raw, 5.0, retained=percent == 10.0)
    assert fleet.take("active-restore/a/command", b"{}", 6.0, retained=False) is None
    assert fleet.take("elsewhere/a/progress", raw, 6.0, retained=False) is None
    (machine,) = fleet.machines()
    assert (machine.progress and machine.progress.percent, machine.seen_at, fleet.dropped) == (20.0, 5.0, 0)
    assert fleet.take("active-restore/a/progress", b"", 7.0, retained=False) is None
    assert fleet.machines() == []


def test_the_simulated_machines_are_like_real_ones() -> None:
    """What the tests publish is what an agent publishes, field for field."""
    digest = Digest("x", samples.TARGET)
    for event in (samples.PLANNED, samples.READY, samples.PROGRESS, samples.FAULT, samples.DONE):
        digest.event(event)
    at_work = digest.take("progress")[0]
    digest.close(None)
    like = {"state": state("x"), "progress": progress(), "faults": machines.faults(), "report": report("x")}
    for kind in KINDS:
        payload = at_work if kind == "progress" else digest.take(kind)[0]
        assert payload is not None
        assert set(like[kind]) == set(msgspec.to_builtins(payload))
