"""The commands as a user types them, on a real file system, with a restore that really runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KIB = 1 << 10
SLOW = "200kB/s"
"""The source has some 12 MB: a background at this rate does not end while a test looks."""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as machine:
        yield machine


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tree = tmp_path / "source"
    for folder in ("a", "b", "c"):
        (tree / folder).mkdir(parents=True)
        for number in range(20):
            (tree / folder / f"file{number:02}").write_bytes(os.urandom(200 * KIB))
    (tree / "a/link").symlink_to("file00")
    (tree / "empty").touch()
    return tree


@pytest.fixture
def target(machine: Machine) -> Path:
    return machine.mount / "tree"


def status_of(machine: Machine, target: Path) -> dict[str, object]:
    ended = machine.run("status", target, "--json")
    assert ended.returncode == 0, ended.stderr
    event: dict[str, object] = json.loads(ended.stdout)
    return event


def assert_equal(machine: Machine, source: Path, target: Path) -> None:
    ended = machine.run("verify", f"dir:{source}", target, "--extra")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list((machine.place / "state").iterdir()) == []
    assert list((machine.place / "run").iterdir()) == []


def test_restore_says_what_it_does(machine: Machine, source: Path, target: Path) -> None:
    ended = machine.run("restore", f"dir:{source}", target, "--json")
    assert ended.returncode == 0, ended.stderr
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "progress"]
    assert kinds == ["planned", "ready", "done"]
    planned, done = events[0], events[-1]
    assert (planned["files"], planned["bytes"]) == (60, 60 * 200 * KIB)
    assert (done["files"], done["bytes"], done["refused"]) == (60, 60 * 200 * KIB, 0)
    assert_equal(machine, source, target)


def test_restore_in_plain_lines(machine: Machine, source: Path, target: Path) -> None:
    ended = machine.run("restore", f"dir:{source}", target)
    assert (ended.returncode, ended.stderr) == (0, "")
    planned, ready, *_, done = ended.stdout.splitlines()
    assert planned.startswith("planned: 60 files, 11.7 MiB")
    assert ready.startswith("ready: ")
    assert done.startswith("done: 60 files, 11.7 MiB in ")


def test_patterns(machine: Machine, source: Path, target: Path) -> None:
    patterns = ["--include", "/a", "--include", "file0?", "--exclude", "*5"]
    ended = machine.run("restore", f"dir:{source}", target, *patterns)
    assert ended.returncode == 0, ended.stderr
    restored = {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}
    expected = {f"a/file{number:02}" for number in range(20)} | {f"{d}/file0{n}" for d in "bc" for n in range(10)} | {"a/link"}
    assert restored == {name for name in expected if not name.endswith("5")}
    assert machine.run("verify", f"dir:{source}", target, *patterns, "--extra").returncode == 0


def test_a_task_gets_its_file_and_the_event_says_so(machine: Machine, source: Path, target: Path) -> None:
    agent = machine.start("restore", f"dir:{source}", target, "--json", "--limit", SLOW)
    agent.until("ready")
    ended = subprocess.run(["cat", target / "c/file19"], capture_output=True, check=True, timeout=60)
    assert ended.stdout == (source / "c/file19").read_bytes()
    fault = agent.until("fault")
    assert (fault["path"], fault["lane"], fault["task"]["comm"]) == ("c/file19", "demand", "cat")
    assert machine.run("limit", "0").returncode == 0
    assert agent.until("done")["faults"] >= 1
    assert agent.end() == (0, "")
    assert_equal(machine, source, target)


def test_steering_a_restore(machine: Machine, source: Path, target: Path) -> None:
    agent = machine.start("restore", f"dir:{source}", target, "--json", "--limit", SLOW)
    agent.until("ready")
    assert machine.run("pause", target).stdout.startswith(f"{target}: background paused")
    status = status_of(machine, target)
    assert (status["agent"], status["paused"], status["phase"]) == (True, True, "restoring")
    assert status["limit_bytes_per_s"] == 200_000
    assert (status["files_total"], status["bytes_total"]) == (60, 60 * 200 * KIB)
    ended = machine.run("promote", target / "b/file03", target / "c")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("files promoted\n")
    ended = machine.run("status")
    assert "(background paused)" in ended.stdout
    ended = machine.run("limit", "40MiB/s", target)
    assert (ended.returncode, ended.stdout) == (0, f"{target}: background limited to 40.0 MiB/s\n")
    assert status_of(machine, target)["limit_bytes_per_s"] == 40 << 20
    assert machine.run("continue").returncode == 0
    assert machine.run("limit", "0").stdout == f"{target}: no limit\n"
    agent.until("done")
    assert agent.end() == (0, "")
    assert_equal(machine, source, target)


def test_watching_ends_with_the_restore(machine: Machine, source: Path, target: Path) -> None:
    agent = machine.start("restore", f"dir:{source}", target, "--json", "--limit", SLOW)
    agent.until("ready")
    watcher = machine.start("status", "--watch", "--json")
    assert watcher.until("status")["phase"] == "restoring"
    machine.run("limit", "0")
    agent.until("done")
    assert watcher.end() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_interrupted_and_resumed(machine: Machine, source: Path, target: Path, number: signal.Signals) -> None:
    agent = machine.start("restore", f"dir:{source}", target, "--json", "--limit", SLOW)
    agent.until("ready")
    agent.signal(number)
    code, err = agent.end()
    if number == signal.SIGKILL:
        assert code == -number
    else:
        assert code == 130
        assert err.startswith("active-restore: error: interrupted\nhint: ")
        assert f"active-restore resume {target}" in err
    status = status_of(machine, target)
    assert (status["agent"], status["phase"] in ("restoring", "interrupted")) == (False, True)
    assert f"run: active-restore resume {target}" in machine.run("status").stdout
    again = machine.run("restore", f"dir:{source}", target)
    assert again.returncode == 16
    assert f"active-restore resume {target}" in again.stderr
    reader = subprocess.Popen(["cat", target / "c/file07"], stdout=subprocess.PIPE)
    resumed = machine.run("resume", target, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert reader.communicate(timeout=60)[0] == (source / "c/file07").read_bytes()
    assert_equal(machine, source, target)
    assert machine.run("resume", target).returncode == 19


def test_the_source_has_moved(machine: Machine, source: Path, target: Path) -> None:
    agent = machine.start("restore", f"dir:{source}", target, "--json", "--limit", SLOW)
    agent.until("ready")
    agent.signal(signal.SIGINT)
    agent.end()
    moved = source.rename(source.with_name("moved"))
    assert machine.run("resume", target).returncode == 10
    ended = machine.run("resume", target, "--source", f"dir:{moved}")
    assert ended.returncode == 0, ended.stderr
    assert_equal(machine, moved, target)


def test_release_gives_errors_not_zeros(machine: Machine, source: Path, target: Path) -> None:
    agent = machine.start("restore", f"dir:{source}", target, "--json", "--limit", SLOW)
    agent.until("ready")
    busy = machine.run("release", target)
    assert busy.returncode == 11, "an agent that runs is not released"
    agent.signal(signal.SIGKILL)
    agent.end()
    reader = subprocess.Popen(["cat", target / "c/file11"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    released = machine.run("release", target)
    assert (released.returncode, released.stderr) == (0, "")
    out, err = reader.communicate(timeout=60)
    assert (out, b"Input/output error" in err) == (b"", True)
    assert machine.run("resume", target).returncode == 0
    assert_equal(machine, source, target)


def test_a_second_agent(machine: Machine, source: Path, target: Path) -> None:
    agent = machine.start("restore", f"dir:{source}", target, "--json", "--limit", SLOW)
    agent.until("ready")
    for ended in (machine.run("restore", f"dir:{source}", target), machine.run("resume", target)):
        assert ended.returncode == 11
        assert ended.stderr.startswith("active-restore: error: ")
    machine.run("limit", "0")
    agent.until("done")
    assert agent.end() == (0, "")


def test_nobody_reads_the_output(machine: Machine, source: Path, target: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = machine.argv("restore", f"dir:{source}", target, "--json")
    ended = subprocess.run(argv, env=machine.env, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=120)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert_equal(machine, source, target)


class TestBadInput:
    """One line, a hint, its own exit code, no traceback, and nothing left behind."""

    @staticmethod
    def refused(machine: Machine, code: int, words: str, *arguments: str | Path) -> None:
        ended = machine.run(*arguments)
        lines = ended.stderr.splitlines()
        assert (ended.returncode, ended.stdout) == (code, ""), ended
        assert lines[0].startswith("active-restore: error: ")
        assert words in lines[0], ended.stderr
        assert [line.partition(": ")[0] for line in lines[1:]] == ["hint"], ended.stderr
        for place in ("state", "run"):
            directory = machine.place / place
            assert not directory.exists() or not list(directory.iterdir()), "state is left of what never began"

    def test_target_not_empty(self, machine: Machine, source: Path, target: Path) -> None:
        target.mkdir()
        (target / "mine").write_text("mine")
        self.refused(machine, 16, "empty", "restore", f"dir:{source}", target)
        assert os.listdir(target) == ["mine"]

    def test_target_is_a_file(self, machine: Machine, source: Path, target: Path) -> None:
        target.touch()
        self.refused(machine, 16, "director", "restore", f"dir:{source}", target)

    def test_target_read_only(self, machine: Machine, source: Path, target: Path) -> None:
        target.mkdir()
        subprocess.run(["mount", "-o", "remount,ro", machine.mount], check=True)
        self.refused(machine, 16, "read-only", "restore", f"dir:{source}", target)

    @pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
    def test_file_system(self, machine: Machine, source: Path, kind: str) -> None:
        mount = machine.place / "odd"
        for name in ("odd", "lower", "upper", "work"):
            (machine.mount / name).mkdir()
        mount.mkdir()
        options = {"tmpfs": [], "overlay": ["-o", "lowerdir=lower,upperdir=upper,workdir=work"]}[kind]
        subprocess.run(["mount", "-t", kind, *options, kind, mount], check=True, cwd=machine.mount)
        try:
            self.refused(machine, 16, kind, "restore", f"dir:{source}", mount / "tree")
        finally:
            subprocess.run(["umount", mount], check=True)

    def test_too_little_space(self, machine: Machine, source: Path, target: Path) -> None:
        with open(source / "huge", "wb") as file:
            for _ in range(520):
                file.write(os.urandom(1 << 20))
        self.refused(machine, 17, "space", "restore", f"dir:{source}", target)

    def test_no_privilege(self, machine: Machine, source: Path, target: Path) -> None:
        shutil.chown(machine.mount, 65534)
        demote = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        for directory in (machine.place, *machine.place.parents[:-2]):
            directory.chmod(directory.stat().st_mode | 0o055)
        argv = machine.argv("restore", f"dir:{source}", target)
        argv[2] = demote + argv[2]
        ended = subprocess.run(argv, env=machine.env, capture_output=True, text=True, check=False, timeout=120)
        assert ended.returncode == 18, ended.stderr
        assert "Traceback" not in ended.stderr
        assert "hint: " in ended.stderr

    def test_no_source(self, machine: Machine, target: Path) -> None:
        self.refused(machine, 10, "no directory", "restore", f"dir:{machine.place}/nothing", target)

    def test_bpf_is_not_there(self, machine: Machine, source: Path, target: Path) -> None:
        self.refused(machine, 18, "bpf", "restore", f"dir:{source}", target, "--interceptor", "bpf")


class TestRestic:
    """What a restic repository can have wrong with it."""

    @pytest.fixture
    def repository(self, machine: Machine, source: Path) -> str:
        machine.env["RESTIC_PASSWORD"] = "open sesame"
        place = str(machine.place / "repository")
        for arguments in (["init"], ["backup", "."], ["backup", "--tag", "second", "."]):
            argv = ["restic", "-r", place, *arguments]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=machine.env, cwd=source)
        return place

    def test_restore(self, machine: Machine, source: Path, target: Path, repository: str) -> None:
        ended = machine.run("restore", f"restic:{repository}", target, "--snapshot", f"latest:{source}")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert_equal(machine, source, target)
        assert machine.run("verify", f"restic:{repository}", target, "--snapshot", f"latest:{source}").returncode == 0

    def test_bad_names(self, machine: Machine, source: Path, target: Path, repository: str) -> None:
        del source
        refused = TestBadInput.refused
        spec = f"restic:{repository}"
        refused(machine, 13, "0000", "restore", spec, target, "--snapshot", "0000000")
        refused(machine, 13, "nowhere", "restore", spec, target, "--snapshot", "latest:/nowhere")
        refused(machine, 10, "nothing", "restore", f"restic:{machine.place}/nothing", target)
        machine.env["RESTIC_PASSWORD"] = "guess"
        refused(machine, 12, "password", "restore", spec, target)
        del machine.env["RESTIC_PASSWORD"]
        refused(machine, 12, "password", "restore", spec, target)
        assert not target.exists() or not os.listdir(target)

    @pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 1000), os.unlink], ids=["truncated", "gone"])
    def test_a_damaged_pack(
        self, machine: Machine, source: Path, target: Path, repository: str, damage: Callable[[str], None]
    ) -> None:
        packs = sorted(
            (os.path.join(place, name) for place, _, names in os.walk(f"{repository}/data") for name in names),
            key=os.path.getsize,
        )
        os.chmod(packs[-1], 0o600)
        damage(packs[-1])
        ended = machine.run("restore", f"restic:{repository}", target, "--snapshot", f"latest:{source}", "--json")
        events = [json.loads(line) for line in ended.stdout.splitlines()]
        refused = [event for event in events if event["event"] == "refused"]
        assert ended.returncode == 3, ended.stderr
        assert "Traceback" not in ended.stderr
        assert refused
        assert {event["errno_name"] for event in refused} == {"EIO"}
        lost = {event["path"] for event in refused}
        assert events[-1]["event"] == "done"
        assert events[-1]["refused"] == len(lost)
        for path in source.rglob("file*"):
            name = str(path.relative_to(source))
            if name not in lost:
                assert (target / name).read_bytes() == path.read_bytes()
