"""The control socket with real sockets: every command, several clients, and clients that mean no good."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_restore.config import LimitWindow
from active_restore.control import messages
from active_restore.control.client import ControlClient
from active_restore.control.messages import PathText, StatusText, parse_request
from active_restore.control.names import shown
from active_restore.control.registry import Known
from active_restore.control.server import ControlServer
from active_restore.errors import ActiveRestoreError, Busy, CapabilityMissing, NotRunning, UsageError
from active_restore.model import Task
from active_restore.restore.progress import LaneCount, Status, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

HOSTILE_NAME = b"dir/\xff\x1b[2Jname\n"
STATUS = Status(
    phase="restoring",
    target="/srv/t\udcff",
    source="restic:/repo",
    snapshot="ab12",
    interceptor="fanotify",
    seconds=1.5,
    files_total=10,
    bytes_total=1000,
    lanes={"demand": LaneCount(1, 2)},
    waiting=(Waiting(HOSTILE_NAME, Task(7, 6, "cat"), 12.5),),
)


class Recorder:
    """An agent that only remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def status(self) -> Status:
        self.entered.set()
        self.gate.wait(30)
        return STATUS

    def promote(self, paths: Sequence[bytes]) -> int:
        if self.error is not None:
            raise self.error
        self.calls.append(list(paths))
        return len(paths)

    def pause(self) -> None:
        self.calls.append("pause")

    def proceed(self) -> None:
        self.calls.append("proceed")

    def limit(self, bytes_per_s: int, windows: Sequence[LimitWindow] = ()) -> None:
        self.calls.append((bytes_per_s, *windows))

    def stop(self) -> None:
        self.calls.append("stop")


@contextlib.contextmanager
def serving(path: Path, commands: Recorder) -> Iterator[None]:
    """A server in a thread of its own, as far away from the client as another process would be."""
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def serve() -> None:
        leave = asyncio.Event()
        async with ControlServer(path, commands):
            started.append((asyncio.get_running_loop(), leave))
            ready.set()
            await leave.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"tasks left: {others}"

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        loop, leave = started[0]
        loop.call_soon_threadsafe(leave.set)
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    """A restore with a run directory whose path is longer than a socket address takes."""
    monkeypatch.setenv("ACTIVE_RESTORE_RUN", str(tmp_path / ("r" * 120)))
    return Known("a" * 16, "id", "dir:/s", "/srv/t", "latest", "restoring")


@pytest.fixture
def agent(restore: Known) -> Iterator[Recorder]:
    commands = Recorder()
    with serving(restore.socket_path, commands):
        yield commands


def raw(restore: Known) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    directory = os.open(restore.socket_path.parent, os.O_PATH)
    connection.connect(f"/proc/self/fd/{directory}/{restore.socket_path.name}")
    os.close(directory)
    return connection


def answer_to(restore: Known, line: bytes) -> dict[str, object]:
    with raw(restore) as connection, connection.makefile("rb") as answers:
        connection.sendall(line)
        answer: dict[str, object] = json.loads(answers.readline())
        return answer


def test_every_command(restore: Known, agent: Recorder) -> None:
    with ControlClient(restore) as client:
        status = client.status()
        assert status.waiting[0].path == HOSTILE_NAME
        assert status.waiting[0].task == Task(7, 6, "cat")
        assert status.lanes == {"demand": LaneCount(1, 2)}
        assert status.target == "/srv/t\\xff"
        client.pause()
        client.proceed()
        client.limit(50_000_000)
        client.limit(0, [LimitWindow(480, 1080, 20_000_000)])
        assert client.promote([HOSTILE_NAME, b""]) == 2
        client.stop()
    limits = [(50_000_000,), (0, LimitWindow(480, 1080, 20_000_000))]
    assert agent.calls == ["pause", "proceed", *limits, [HOSTILE_NAME, b""], "stop"]


def test_many_paths_go_in_several_requests(restore: Known, agent: Recorder) -> None:
    paths = [b"\x01\xff" * 2048 for _ in range(messages.MAX_PATHS * 2 + 1)]
    with ControlClient(restore) as client:
        assert client.promote(paths) == len(paths)
    assert len(agent.calls) == 3


def test_errors_keep_their_class(restore: Known, agent: Recorder) -> None:
    agent.error = Busy("taken", "wait")
    with ControlClient(restore) as client:
        with pytest.raises(Busy, match="taken") as caught:
            client.promote([b"x"])
        assert caught.value.hint == "wait"
        agent.error = RuntimeError("secret inner workings")
        with pytest.raises(ActiveRestoreError) as hidden:
            client.promote([b"x"])
        assert "secret" not in str(hidden.value)
        assert client.status().phase == "restoring"


def test_a_slow_command_does_not_hold_up_other_clients(restore: Known, agent: Recorder) -> None:
    agent.gate.clear()
    with raw(restore) as slow, ControlClient(restore) as quick:
        slow.sendall(messages.request_line(messages.StatusRequest()))
        assert agent.entered.wait(10)
        quick.pause()
        agent.gate.set()
        assert json.loads(slow.makefile("rb").readline())["ok"] is True


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"null\n",
        b"[]\n",
        b"\xff\xfe\n",
        b'{"command": "status", "version": 2}\n',
        b'{"command": "status", "version": "1"}\n',
        b'{"command": "format_disk"}\n',
        b'{"command": "status", "more": 1}\n',
        b'{"command": "limit", "bytes_per_s": -1}\n',
        b'{"command": "limit", "bytes_per_s": 1e300}\n',
        b'{"command": "promote", "paths": []}\n',
        b'{"command": "promote", "paths": [{"path": "a\\u0000b"}]}\n',
        b'{"command": "promote", "paths": [{"path": "x", "path_b64": "!"}]}\n',
        b'{"command": "promote", "paths": "' + b"a" * 100_000 + b'"}\n',
        b"[" * 100_000 + b"\n",
    ],
    ids=lambda line: line[:60].decode(errors="replace"),
)
def test_nonsense_gets_one_line_and_changes_nothing(restore: Known, agent: Recorder, line: bytes) -> None:
    answer = answer_to(restore, line)
    assert answer["ok"] is False
    assert isinstance(answer["error"], dict)
    assert answer["error"]["code"] == "usage"
    assert "\n" not in answer["error"]["message"]
    assert agent.calls == []
    with ControlClient(restore) as client:
        assert client.status().phase == "restoring"


def test_an_endless_line_is_cut_off(restore: Known, agent: Recorder) -> None:
    with raw(restore) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(64):
                connection.sendall(b"x" * (1 << 20))
            pytest.fail("the agent took 64 MiB of one line")
    with ControlClient(restore) as client:
        assert client.status().phase == "restoring"


def test_half_a_request_and_silence_block_nobody(restore: Known, agent: Recorder) -> None:
    with raw(restore) as half, raw(restore), ControlClient(restore) as client:
        half.sendall(b'{"command": "pau')
        assert client.status().phase == "restoring"
    assert agent.calls == []


def test_too_many_clients_are_told_so(restore: Known, agent: Recorder) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(raw(restore)) for _ in range(33)]
        last = json.loads(connections[-1].makefile("rb").readline())
        assert "too many" in last["error"]["message"]
    # The places become free again when the clients have gone; the agent notices that in its own time.
    for _ in range(1000):
        try:
            with ControlClient(restore) as client:
                client.pause()
                return
        except ActiveRestoreError:
            threading.Event().wait(0.01)
    pytest.fail("no client is served any more")


def test_only_root(restore: Known, agent: Recorder) -> None:
    """Even where somebody opened the directories, the peer's credentials decide."""
    path = restore.socket_path
    script = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
try:
    os.chdir(sys.argv[1])
    s.connect("control.sock")
except PermissionError:
    print("no entry"); sys.exit()
print(s.makefile().readline())
"""
    command = [sys.executable, "-c", script, str(path.parent)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "no entry\n"
    opened = [path.parent, *path.parents[1:-1]]
    modes = {directory: directory.stat().st_mode for directory in opened}
    try:
        for directory in opened:
            directory.chmod(modes[directory] | 0o755)
        path.chmod(0o777)
        answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    finally:
        for directory in opened:
            directory.chmod(modes[directory])
    assert answer["error"]["code"] == CapabilityMissing.code
    assert agent.calls == []


def test_the_directory_is_private_and_the_socket_goes_away(restore: Known) -> None:
    path = restore.socket_path
    path.parent.mkdir(parents=True)
    path.parent.chmod(0o755)
    path.touch()  # what a killed agent left
    with serving(path, Recorder()):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.is_socket()
    assert not path.exists()


def test_leaving_answers_what_is_under_way(restore: Known) -> None:
    agent = Recorder()
    agent.gate.clear()
    with serving(restore.socket_path, agent):
        connection = raw(restore)
        connection.sendall(messages.request_line(messages.StatusRequest()))
        assert agent.entered.wait(10)
        leaving = threading.Thread(target=open_when_gone, args=(restore.socket_path, agent.gate))
        leaving.start()
    leaving.join()
    with connection, connection.makefile("rb") as answers:
        assert json.loads(answers.readline())["ok"] is True
        assert answers.readline() == b""


def open_when_gone(path: Path, gate: threading.Event) -> None:
    """Let the command end only when the server has begun to leave."""
    for _ in range(1000):
        if not path.exists():
            break
        threading.Event().wait(0.01)
    gate.set()


def test_no_agent(restore: Known) -> None:
    with pytest.raises(NotRunning, match="no agent is running") as caught:
        ControlClient(restore)
    assert "active-restore resume /srv/t" in caught.value.hint
    restore.socket_path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as dead:
        directory = os.open(restore.socket_path.parent, os.O_PATH)
        dead.bind(f"/proc/self/fd/{directory}/{restore.socket_path.name}")
        os.close(directory)
    with pytest.raises(NotRunning):
        ControlClient(restore)


@given(st.binary(max_size=4096).filter(lambda path: b"\0" not in path))
def test_any_path_survives(path: bytes) -> None:
    request = messages.PromoteRequest(paths=[PathText.of(path)])
    line = messages.request_line(request)
    assert line.count(b"\n") == 1
    parsed = parse_request(line)
    assert isinstance(parsed, messages.PromoteRequest)
    assert parsed.paths[0].to_bytes() == path


@given(st.binary(max_size=300))
def test_any_line_is_understood_or_refused(line: bytes) -> None:
    with contextlib.suppress(UsageError):
        parse_request(line)


@given(st.binary())
def test_shown_names_hold_no_control_characters(name: bytes) -> None:
    assert shown(name).isprintable()


def test_the_longest_answer_fits() -> None:
    waiting = tuple(Waiting(b"\x01\xff" * 2048, Task(1, 1, "x"), 1.0) for _ in range(1000))
    status = Status("restoring", "/t", "s", "latest", "fanotify", 0.0, waiting=waiting)
    line = messages.Answer(status=StatusText.of(status)).to_line()
    assert len(line) <= messages.MAX_ANSWER_BYTES
    assert len(StatusText.of(status).to_status().waiting) == messages.MAX_WAITING
