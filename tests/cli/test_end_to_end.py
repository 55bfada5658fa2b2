"""The commands as a user types them, on a real file system, with a restore that really runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pexpect
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

KIB = 1 << 10
FILES = 60


def fill(tree: Path) -> None:
    """Sixty files in three directories, and what is no file."""
    for folder in ("a", "b", "c"):
        (tree / folder).mkdir()
        for number in range(FILES // 3):
            (tree / folder / f"file{number:02}").write_bytes(os.urandom(64 * KIB))
    (tree / "a/link").symlink_to("file00")
    (tree / "empty").touch()


@pytest.fixture
def full(rig: Rig) -> Rig:
    """A rig with something to restore."""
    fill(rig.tree)
    return rig


@pytest.fixture
def held(held_rig: Rig) -> Rig:
    """The same, for restores whose background stands still from the beginning."""
    fill(held_rig.tree)
    return held_rig


def status_of(rig: Rig, target: Path) -> dict[str, object]:
    ended = rig.run("status", target, "--json")
    assert ended.returncode == 0, ended.stderr
    event: dict[str, object] = json.loads(ended.stdout)
    return event


def test_restore_says_what_it_does(full: Rig, ext4_target: Path) -> None:
    ended = full.run("restore", full.source, ext4_target, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    events = [event for line in ended.stdout.splitlines() if (event := json.loads(line))["event"] != "progress"]
    assert [event["event"] for event in events] == ["planned", "ready", "done"]
    planned, done = events[0], events[-1]
    assert (planned["files"], planned["bytes"]) == (FILES, FILES * 64 * KIB)
    assert (done["files"], done["bytes"], done["refused"]) == (FILES, FILES * 64 * KIB, 0)
    full.verify(ext4_target)


def test_restore_in_plain_lines(full: Rig, ext4_target: Path) -> None:
    ended = full.run("restore", full.source, ext4_target)
    assert (ended.returncode, ended.stderr) == (0, "")
    planned, ready, *_, done = ended.stdout.splitlines()
    assert planned.startswith("planned: 60 files, 3.75 MiB")
    assert ready.startswith("ready: ")
    assert done.startswith("done: 60 files, 3.75 MiB in ")


def test_patterns(full: Rig, ext4_target: Path) -> None:
    patterns = ["--include", "/a", "--include", "file0?", "--exclude", "*5"]
    ended = full.run("restore", full.source, ext4_target, *patterns)
    assert ended.returncode == 0, ended.stderr
    restored = {str(path.relative_to(ext4_target)) for path in ext4_target.rglob("*") if not path.is_dir()}
    expected = {f"a/file{number:02}" for number in range(20)} | {f"{d}/file0{n}" for d in "bc" for n in range(10)}
    assert restored == {name for name in expected | {"a/link"} if not name.endswith("5")}
    full.verify(ext4_target, *patterns)


def test_a_task_gets_its_file_and_the_event_says_so(held: Rig, ext4_target: Path) -> None:
    agent = held.hold(ext4_target)
    ended = subprocess.run(["cat", ext4_target / "c/file19"], capture_output=True, check=True, timeout=60)
    assert ended.stdout == (held.tree / "c/file19").read_bytes()
    fault = agent.until("fault")
    assert (fault["path"], fault["lane"], fault["task"]["comm"]) == ("c/file19", "demand", "cat")
    assert held.run("limit", "0").returncode == 0
    assert agent.until("done")["faults"] >= 1
    assert agent.end() == (0, "")
    held.verify(ext4_target)


def test_steering_a_restore(held: Rig, ext4_target: Path) -> None:
    agent = held.hold(ext4_target)
    assert held.run("pause", ext4_target).stdout.startswith(f"{ext4_target}: background paused")
    status = status_of(held, ext4_target)
    assert (status["agent"], status["paused"], status["phase"]) == (True, True, "restoring")
    assert (status["files_total"], status["limit_bytes_per_s"]) == (FILES + 4, 1)
    ended = held.run("promote", ext4_target / "b/file03", ext4_target / "c")
    assert (ended.returncode, ended.stdout) == (0, f"{ext4_target}: 21 files promoted\n"), ended.stderr
    # Again: they are in line twice now, and are restored once.
    assert held.run("promote", ext4_target / "c").stdout == f"{ext4_target}: 20 files promoted\n"
    assert "(background paused)" in held.run("status").stdout
    ended = held.run("limit", "400KiB/s", ext4_target)
    assert (ended.returncode, ended.stdout) == (0, f"{ext4_target}: background limited to 400 KiB/s\n")
    assert status_of(held, ext4_target)["limit_bytes_per_s"] == 400 << 10
    assert held.run("continue").returncode == 0
    assert held.run("limit", "0").stdout == f"{ext4_target}: no limit\n"
    agent.until("done")
    assert agent.end() == (0, "")
    held.verify(ext4_target)


def test_watching_ends_with_the_restore(held: Rig, ext4_target: Path) -> None:
    agent = held.hold(ext4_target)
    watcher = held.start("status", "--watch")
    assert watcher.until("status")["phase"] == "restoring"
    held.finish(agent, ext4_target)
    assert watcher.end() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_interrupted_and_resumed(held: Rig, ext4_target: Path, number: signal.Signals) -> None:
    agent = held.hold(ext4_target)
    agent.signal(number)
    code, err = agent.end()
    if number == signal.SIGKILL:
        assert code == -number
    else:
        assert code == 130
        assert err == f"active-restore: error: interrupted\nhint: go on with: active-restore resume {ext4_target}\n"
    assert status_of(held, ext4_target)["agent"] is False
    assert f"run: active-restore resume {ext4_target}" in held.run("status").stdout
    again = held.run("restore", held.source, ext4_target)
    assert again.returncode == 16
    assert f"active-restore resume {ext4_target}" in again.stderr
    with subprocess.Popen(["cat", ext4_target / "c/file07"], stdout=subprocess.PIPE) as reader:
        resumed = held.resume(ext4_target)
        assert reader.communicate(timeout=60)[0] == (held.tree / "c/file07").read_bytes()
    held.finish(resumed, ext4_target)
    held.verify(ext4_target)
    assert held.run("resume", ext4_target).returncode == 19


def test_the_source_has_moved(held: Rig, ext4_target: Path) -> None:
    agent = held.hold(ext4_target)
    agent.signal(signal.SIGINT)
    agent.end()
    held.tree = held.tree.rename(held.tree.with_name("moved"))
    held.source = f"dir:{held.tree}"
    assert held.run("resume", ext4_target).returncode == 10
    resumed = held.start("resume", ext4_target, "--source", held.source)
    resumed.until("ready")
    held.finish(resumed, ext4_target)
    held.verify(ext4_target)


def test_release_gives_errors_not_zeros(held: Rig, ext4_target: Path) -> None:
    agent = held.hold(ext4_target)
    assert held.run("release", ext4_target).returncode == 11, "an agent that runs is not released"
    agent.signal(signal.SIGKILL)
    agent.end()
    with subprocess.Popen(["cat", str(ext4_target / "c/file11")], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        released = held.run("release", ext4_target)
        assert (released.returncode, released.stderr) == (0, "")
        out, err = reader.communicate(timeout=60)
    assert (out, b"Input/output error" in err) == (b"", True)
    held.finish(held.resume(ext4_target), ext4_target)
    held.verify(ext4_target)


def test_a_second_agent(held: Rig, ext4_target: Path) -> None:
    agent = held.hold(ext4_target)
    for ended in (held.run("restore", held.source, ext4_target), held.run("resume", ext4_target)):
        assert ended.returncode == 11
        assert ended.stderr.startswith("active-restore: error: ")
    held.finish(agent, ext4_target)


def test_nobody_reads_the_output(full: Rig, ext4_target: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = full.argv("restore", full.source, ext4_target, "--json")
    ended = subprocess.run(argv, env=full.env, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=120)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")
    full.verify(ext4_target)


def test_on_a_terminal(held: Rig, ext4_target: Path) -> None:
    """The live display, Ctrl-C as the terminal sends it, and a status that is watched."""
    environment = {**held.env, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    restore, *arguments = held.argv("restore", held.source, ext4_target, "--limit", "1")
    with pexpect.spawn(restore, arguments, env=environment, timeout=60, dimensions=(40, 160), encoding="utf-8") as agent:
        agent.expect("ready: ")
        agent.expect("restoring")
        agent.expect("tasks held by fanotify")
        watch, *arguments = held.argv("status", "--watch")
        with pexpect.spawn(watch, arguments, env=environment, timeout=60, dimensions=(40, 160), encoding="utf-8") as watcher:
            watcher.expect("of 64 files")
            agent.sendintr()
            agent.expect("active-restore: error: interrupted")
            agent.expect(f"hint: go on with: active-restore resume {ext4_target}")
            agent.expect(pexpect.EOF)
            agent.wait()
            assert agent.exitstatus == 130
            watcher.expect("no agent is running; tasks that need missing files wait")
            held.finish(held.resume(ext4_target), ext4_target)
            watcher.expect("no restore is under way any more")
            watcher.expect(pexpect.EOF)
            watcher.wait()
            assert watcher.exitstatus == 0
    held.verify(ext4_target)
