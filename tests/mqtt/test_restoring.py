"""The commands as a user types them, a restore that really runs, and a real broker."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kernel.waiting import wait_until
from tests.mqtt.broker import free_port
from tests.mqtt.ear import Ear

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig
    from tests.mqtt.broker import Mosquitto
    from tests.mqtt.relay import Relay

FILES = 20


def fill(tree: Path) -> None:
    for number in range(FILES):
        (tree / f"file{number:02}").write_bytes(os.urandom(4096))


def test_a_restore_is_told(rig: Rig, ext4_target: Path, broker: Mosquitto, ear: Ear) -> None:
    fill(rig.tree)
    ended = rig.run("restore", rig.source, ext4_target, "--mqtt", f"mqtt://127.0.0.1:{broker.port}")
    assert (ended.returncode, ended.stderr) == (0, "")
    report = ear.until("report")
    assert (report.outcome, report.files, report.bytes) == ("done", FILES, FILES * 4096)
    assert report.target == str(ext4_target)
    assert ear.until("progress", lambda progress: progress.percent == 100.0).files_done == FILES
    assert ear.until("state", lambda state: not state.online).phase == "done"


def test_killed_and_resumed(held_rig: Rig, ext4_target: Path, broker: Mosquitto, ear: Ear) -> None:
    fill(held_rig.tree)
    url = f"mqtt://127.0.0.1:{broker.port}"
    agent = held_rig.hold(ext4_target, "--mqtt", url)
    began = ear.until("state", lambda state: state.online and state.phase == "restoring")
    subprocess.run(["cat", ext4_target / "file07"], stdout=subprocess.DEVNULL, check=True, timeout=60)
    fault = ear.until("faults", lambda faults: faults.served_total)
    assert (fault.served[0].path, fault.served[0].comm) == ("file07", "cat")
    agent.signal(signal.SIGKILL)
    agent.end()
    assert ear.until("state", lambda state: not state.online).phase == "lost"
    heard = len(ear.heard)
    with subprocess.Popen(["cat", ext4_target / "file08"], stdout=subprocess.DEVNULL) as reader:
        resumed = held_rig.start("resume", ext4_target, "--mqtt", url)
        resumed.until("ready")
        again = ear.until("state", lambda state: state.online and state.phase == "restoring", after=heard)
        assert again.restore_id == began.restore_id != ""
        assert reader.wait(60) == 0
    held_rig.finish(resumed, ext4_target)
    assert ear.until("report", after=heard).outcome == "done"
    held_rig.verify(ext4_target)


@pytest.mark.parametrize("fault", ["dead", "standing still", "flapping"])
def test_a_bad_broker_costs_the_restore_nothing(rig: Rig, ext4_target: Path, line: Relay, fault: str) -> None:
    """Whatever the broker does, the restore ends as if there were none."""
    fill(rig.tree)
    line.still, line.rude = fault == "standing still", fault == "flapping"
    port = free_port() if fault == "dead" else line.port
    agent = rig.start("restore", rig.source, ext4_target, "--mqtt", f"mqtt://127.0.0.1:{port}")
    assert agent.until("done")["files"] == FILES
    assert agent.end()[0] == 0
    rig.verify(ext4_target)


def test_restores_beside_each_other_have_topics_of_their_own(
    held_rig: Rig, ext4_target: Path, broker: Mosquitto, ear: Ear
) -> None:
    """The first is told as the machine, the next as ``<machine>.2``; each keeps its name over a kill, until it ends."""
    fill(held_rig.tree)
    url = ("--mqtt", f"mqtt://127.0.0.1:{broker.port}")
    (held_rig.place / "agent.toml").write_text("[mqtt]\nhost = 'web1'\n")
    others = [ext4_target.with_name(f"{ext4_target.name}-{name}") for name in ("second", "third")]

    def is_told(node: str, target: Path, phase: str, after: int = 0) -> None:
        ear.until("state", lambda state: (state.node, state.target, state.phase) == (node, str(target), phase), after=after)

    first = held_rig.hold(ext4_target, *url)
    is_told("web1", ext4_target, "restoring")
    second = held_rig.hold(others[0], *url)
    is_told("web1.2", others[0], "restoring")
    for agent, node, target in ((first, "web1", ext4_target), (second, "web1.2", others[0])):
        agent.signal(signal.SIGKILL)
        agent.end()
        is_told(node, target, "lost")
    heard = len(ear.heard)
    second = held_rig.start("resume", others[0], *url)
    second.until("ready")
    is_told("web1.2", others[0], "restoring", heard)
    third = held_rig.hold(others[1], *url)
    is_told("web1.3", others[1], "restoring", heard)
    held_rig.finish(second, others[0])
    is_told("web1.2", others[0], "done", heard)
    first = held_rig.start("resume", ext4_target, *url)
    first.until("ready")
    is_told("web1", ext4_target, "restoring", heard)
    held_rig.finish(first, ext4_target)
    held_rig.finish(third, others[1])
    held_rig.verify(others[1])
    told = {(of.node, of.target) for message in ear.of("state") for of in [message.decoded()]}
    assert told == {("web1", str(ext4_target)), ("web1.2", str(others[0])), ("web1.3", str(others[1]))}


def test_an_interrupted_restore_says_so(held_rig: Rig, ext4_target: Path, broker: Mosquitto, ear: Ear) -> None:
    fill(held_rig.tree)
    agent = held_rig.hold(ext4_target, "--mqtt", f"mqtt://127.0.0.1:{broker.port}")
    agent.signal(signal.SIGINT)
    assert agent.end()[0] == 130
    assert ear.until("report").outcome == "interrupted"
    with Ear(broker.port) as late:
        wait_until(lambda: late.of("state"), "the retained state")
        assert late.of("state")[0].decoded().phase == "interrupted"
    held_rig.finish(held_rig.resume(ext4_target), ext4_target)


def test_the_configuration_names_the_broker(rig: Rig, ext4_target: Path, broker: Mosquitto, ear: Ear) -> None:
    """TLS, a password and msgpack are tested elsewhere; here that the table reaches the publisher, and ``off`` turns it off."""
    fill(rig.tree)
    config = rig.place / "agent.toml"
    config.write_text(f'[mqtt]\nbroker = "ws://127.0.0.1:{broker.ws_port}"\nhost = "web7"\ntopic_prefix = "site/a"\nqos = 2\n')
    rig.env["ACTIVE_RESTORE_CONFIG"] = str(config)
    assert rig.run("restore", rig.source, ext4_target).returncode == 0
    assert ear.until("report").node == "web7"
    assert {heard.topic.rpartition("/")[0] for heard in ear.heard} == {"site/a/web7"}
    heard = len(ear.heard)
    other = ext4_target.with_name(f"{ext4_target.name}-other")
    assert rig.run("restore", rig.source, other, "--mqtt", "off").returncode == 0
    assert len(ear.heard) == heard


@pytest.mark.parametrize(
    ("url", "words"),
    [("broker", "not the URL of a broker"), ("mqtt://bob:s3cret@broker", "password"), ("http://broker", "not the URL")],
)
def test_what_is_wrong_is_told_before_anything_begins(rig: Rig, tmp_path: Path, url: str, words: str) -> None:
    ended = rig.run("restore", rig.source, tmp_path / "target", "--mqtt", url)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "s3cret" not in ended.stderr
    assert "hint: " in ended.stderr
    assert not (tmp_path / "target").exists()
