"""The command line without a restore: parsing, errors, exit codes, doctor, manifest, status of what is not there."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from active_restore.cli import command
from active_restore.cli.checks.finding import PRE_CONTENT, Finding, by_range, usable
from active_restore.cli.main import expected, main
from active_restore.cli.parser import build_parser
from active_restore.control import registry
from active_restore.errors import ActiveRestoreError, UsageError, WrongPassword

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = (
    "restore", "resume", "status", "promote", "pause", "continue", "limit", "verify", "doctor", "release", "manifest",
    "config", "agent", "run", "install", "fleet",
)  # fmt: skip
COMMAND = [sys.executable, "-c", "from active_restore.cli.main import run; run()"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACTIVE_RESTORE_CONFIG", str(tmp_path / "agent.toml"))
    monkeypatch.setenv("ACTIVE_RESTORE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("ACTIVE_RESTORE_RUN", str(tmp_path / "run"))
    return tmp_path / "state"


def write_restore(state: Path, target: Path) -> None:
    directory = state / registry.directory_name(str(target))
    directory.mkdir(parents=True)
    fields = {"restore_id": "1f", "source": "dir:/s", "target": str(target), "snapshot": "latest", "phase": "restoring"}
    (directory / "restore.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, "required"),
        (["frobnicate"], 2, "frobnicate"),
        (["restore"], 2, "SOURCE"),
        (["restore", "dir:/x", "/y", "--existing", "maybe"], 2, "maybe"),
        (["restore", "dir:/x", "/y", "--limit", "fast"], 2, "fast"),
        (["restore", "dir:/x", "/y", "--fault-timeout", "0"], 2, "fault-timeout"),
        (["restore", "dir:/x", "/y", "--include", "[a"], 2, "[a"),
        (["restore", "dir:/x", ""], 2, "path is empty"),
        (["restore", "dir:/x", "/y", "--sna", "x"], 2, "--sna"),
        (["limit", "much"], 2, "much"),
        (["limit", "5MB/s"], 19, "no restore"),
        (["pause"], 19, "no restore"),
        (["run", "web"], 2, "there is no [restores.web]"),
        (["install", "--root", "/nonexistent"], 2, "no directory"),
        (["install", "--root", "/tmp", "--command", "a b"], 2, "cannot be named"),
        (["continue"], 19, "no restore"),
        (["status", "/nowhere"], 19, "/nowhere"),
        (["promote", "/nowhere/x"], 19, "/nowhere/x"),
        (["verify", "dir:/nonexistent", "/tmp"], 10, "/nonexistent"),
        (["verify", "ftp:host", "/tmp"], 2, "ftp"),
        (["manifest", "/nonexistent"], 10, "/nonexistent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input(argv: list[str], code: int, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == code
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0].startswith("active-restore: error: ")
    assert words in lines[0]
    assert len(lines) <= 2
    assert all(line.startswith("hint: ") for line in lines[1:])


def test_an_unexpected_error_is_one_line_and_a_traceback_with_debug(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    del state
    monkeypatch.setattr(registry, "known", lambda: 1 // 0)
    assert main(["status"]) == 1
    err = capfd.readouterr().err
    assert "unexpected ZeroDivisionError" in err
    assert "Traceback" not in err
    assert main(["--debug", "status"]) == 1
    assert main(["status", "--debug"]) == 1
    assert capfd.readouterr().err.count("Traceback") == 2


def test_errors_in_a_group_and_of_the_system() -> None:
    inner = WrongPassword("no key opens")
    assert expected(ExceptionGroup("tasks", [ExceptionGroup("more", [ValueError("x"), inner])])) is inner
    assert str(expected(ExceptionGroup("tasks", [ValueError("first\nsecond")]))) == "unexpected ValueError: first second"
    assert str(expected(PermissionError(13, "Permission denied", "/x\n"))) == r"/x\n: Permission denied"


def test_an_error_is_an_event_in_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "dir:/nonexistent", "/tmp", "--json"]) == 10
    out, err = capfd.readouterr()
    event = json.loads(out)
    assert (event["event"], event["code"], event["exit_code"]) == ("error", "no_repository", 10)
    assert err.startswith("active-restore: error: ")


def test_help_names_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n    {name} " in text
        assert main([name, "--help"]) == 0
    for kind in ActiveRestoreError.__subclasses__():
        assert f" {kind.exit_code} " in text


def test_restore_options() -> None:
    arguments = build_parser().parse_args(
        ["restore", "restic:/r", "t", "--snapshot", "latest:/etc", "--include", "a", "--include", "b", "--exclude", "c"]
    )
    assert arguments.snapshot == ("latest", "/etc")
    assert (arguments.include, arguments.exclude) == (["a", "b"], ["c"])
    assert command.snapshot("ab12") == ("ab12", "")
    assert command.snapshot(":etc") == ("latest", "etc")


def test_a_parser_never_ends_the_process() -> None:
    with pytest.raises(UsageError):
        build_parser().parse_args(["restore", "--nonsense"])


def test_status_without_an_agent(state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert capfd.readouterr().out == "no restore is under way\n"
    write_restore(state, tmp_path / "tree")
    assert main(["status", str(tmp_path / "tree")]) == 0
    out = capfd.readouterr().out
    assert "no agent is running; tasks that need missing files wait" in out
    assert f"run: active-restore resume {tmp_path / 'tree'}" in out
    assert main(["status", "--json"]) == 0
    event = json.loads(capfd.readouterr().out)
    assert (event["agent"], event["phase"], event["target"]) == (False, "restoring", str(tmp_path / "tree"))
    assert main(["pause"]) == 19
    assert f"active-restore resume {tmp_path / 'tree'}" in capfd.readouterr().err
    write_restore(state, tmp_path / "other")
    assert main(["pause"]) == 2
    assert "2 restores" in capfd.readouterr().err


def test_a_closed_pipe_is_no_error(state: Path, tmp_path: Path) -> None:
    for number in range(50):
        write_restore(state, tmp_path / f"tree{number}")
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([*COMMAND, "status"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_not_root(state: Path, tmp_path: Path) -> None:
    write_restore(state, tmp_path / "tree")
    state.chmod(0o700)
    script = "import os; os.setgid(65534); os.setuid(65534)\nfrom active_restore.control import registry\nregistry.known()"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "only root may see the restores" in ended.stderr


def test_doctor(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", str(tmp_path / "not/yet/made"), "--json"])
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    verdict = events.pop()
    assert verdict["event"] == "verdict"
    assert code == (0 if verdict["interceptors"] else 1)
    for event in events:
        assert event["why"]
        assert event["present"] or event["todo"], f"{event['name']} is missing and nothing says what to do"
    names = {event["name"] for event in events}
    assert {"privileges", "fanotify permission events", "file system", "BPF LSM", "bcc", "free space"} <= names
    assert main(["doctor", str(tmp_path)]) == code
    text = capfd.readouterr().out
    assert text.count("why: ") == len(events)


def test_doctor_on_a_file_system_that_cannot_do_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "/dev/shm"]) == 1
    out = capfd.readouterr().out
    assert "NO  file system: /dev/shm is on a file system of type 0x1021994" in out
    assert "no restore can run here" in out


def test_doctor_knows_the_unrelated_bcc(tmp_path: Path) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc/__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ended = subprocess.run([*COMMAND, "doctor", "--json"], env=environment, capture_output=True, text=True, check=False)
    findings = {event["name"]: event for line in ended.stdout.splitlines() if "name" in (event := json.loads(line))}
    assert findings["bcc"]["present"] is False
    assert "another module named bcc" in findings["bcc"]["detail"]


@pytest.mark.parametrize(
    ("lacking", "interceptors"),
    [([], ["bpf", "fanotify"]), (["bpf"], ["fanotify"]), (["fanotify", "advised"], ["bpf"]), (["any"], [])],
)
def test_what_is_usable(lacking: list[str], interceptors: list[str]) -> None:
    findings = [Finding("x", need not in lacking, need, "", "") for need in ("any", "fanotify", "bpf", "advised")]
    assert usable(findings) == interceptors


def test_who_can_do_ranges() -> None:
    """Pre-content events first, which see every context; else BPF where it works."""
    bpf, events = Finding("BPF LSM", True, "bpf", "", ""), Finding(PRE_CONTENT, True, "advised", "", "")
    assert by_range([bpf, events]) == "pre-content events, for which --interceptor auto takes fanotify"
    lacking = dataclasses.replace(events, present=False)
    assert by_range([bpf, lacking]) == "BPF programs"
    assert by_range([dataclasses.replace(bpf, present=False), lacking]) == ""


def test_manifest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree, copy = tmp_path / "tree", tmp_path / "copy"
    (tree / "d").mkdir(parents=True)
    (tree / "d/f").write_bytes(b"content")
    subprocess.run(["cp", "-a", tree, copy], check=True)
    kept = (tree / "d").stat()
    assert main(["manifest", str(tree)]) == 0
    assert ".active-restore-manifest: 1 file\n" in capfd.readouterr().out
    os.utime(tree, ns=(1, copy.stat().st_mtime_ns))
    assert main(["verify", f"dir:{tree}", str(copy)]) == 0
    times = (tree / "d/f").stat()
    (tree / "d/f").write_bytes(b"CONTENT")
    os.utime(tree / "d/f", ns=(1, times.st_mtime_ns))
    os.utime(tree / "d", ns=(1, kept.st_mtime_ns))
    assert main(["verify", f"dir:{tree}", str(copy)]) == 1
    assert "d/f does not match the manifest" in capfd.readouterr().out
    assert main(["manifest", str(tree)]) == 0, "made anew when files have changed"


def test_the_log_goes_to_stderr_and_never_blocks() -> None:
    script = """
import logging, sys
from active_restore.cli import log
with log.to_stderr(debug=False):
    for number in range(20000):
        logging.getLogger("x").warning("line %d of a log that nobody reads yet", number)
    print("done", flush=True)
"""
    reader, writer = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=writer, text=True)
    os.close(writer)
    assert child.stdout is not None
    assert child.stdout.readline() == "done\n", "logging waited for a reader"
    with os.fdopen(reader, "rb") as err:
        assert err.readline() == b"active-restore: WARNING: line 0 of a log that nobody reads yet\n"
        assert err.read().count(b"\n") < 10_000, "the log is kept without bound"
    child.stdout.close()
    assert child.wait(20) == 0
