"""What ``intercept.base.Interceptor`` promises, against each implementation that this kernel has.

``ACTIVE_RESTORE_TEST_INTERCEPTORS`` names them: ``fanotify`` where it is not set, ``fanotify,bpf`` on a machine with both.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from active_restore.marker import MARKER, marker_prefix, marker_value
from tests.kernel.disks import KINDS, restore_id_of
from tests.kernel.rig import INTERCEPTORS
from tests.kernel.tasks import Task, python, refused, run
from tests.kernel.waiting import DEADLINE_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kernel.disks import Disk
    from tests.kernel.rig import Rig

_number = itertools.count()


class Agent:
    """The process of ``tests/intercept/agent.py``."""

    def __init__(self, rig: Rig, name: str, root: Path, how: str) -> None:
        run_dir = rig.place / "run"
        run_dir.mkdir(exist_ok=True)
        words = [name, str(root), restore_id_of(root), str(run_dir), "100", how]
        argv = [sys.executable, "-m", "tests.intercept.agent", *words]
        env = rig.env | {"PYTHONPATH": os.pathsep.join((rig.env["PYTHONPATH"], *sys.path))}
        self.rig = rig
        self.child = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout as lines:
            for line in lines:
                self._lines.put(json.loads(line))

    def until(self, event: str) -> dict[str, Any]:
        """The next event of this kind; others are dropped."""
        while True:
            found = self._lines.get(timeout=DEADLINE_S)
            if found["event"] == event:
                return found

    def tells(self, field: str, expected: set[int]) -> None:
        """Until all of these were told, each as often as it may be: who handles a signal is told of again."""
        told: set[int] = set()
        while not expected <= told:
            told.add(self.until("fault")[field])
        assert told == expected

    def order(self, *words: object) -> None:
        """Give a command and wait until it is done."""
        assert self.child.stdin is not None
        self.child.stdin.write(" ".join(map(str, words)) + "\n")
        self.child.stdin.flush()
        assert self.until("ok")["word"] == words[0]

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()
        self.end()

    def end(self) -> None:
        """Wait until it is gone."""
        self.child.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self.child.stdin is not None
        self.child.stdin.close()


@pytest.fixture(params=INTERCEPTORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# fanotify knows no difference; BPF goes by inode numbers and the UUID.
@pytest.fixture(params=KINDS if "bpf" in INTERCEPTORS else ("ext4",))
def root(request: pytest.FixtureRequest, disks: Callable[[str], Disk]) -> Path:
    place = disks(request.param).mount / f"territory{next(_number)}"
    place.mkdir()
    for number in range(8):
        (place / f"f{number}").write_bytes(b"content of %d" % number)
    (place / "plain").write_bytes(b"plain")
    return place


@pytest.fixture
def begin(rig: Rig, name: str, root: Path) -> Iterator[Callable[[str], Agent]]:
    agents = []

    def start(how: str) -> Agent:
        agent = Agent(rig, name, root, how)
        agents.append(agent)
        if how == "arm":
            agent.until("armed")
            for number in range(8):
                agent.order("add", number, f"f{number}")
            agent.order("laid")
        return agent

    yield start
    for agent in agents:
        if agent.child.poll() is None:
            agent.kill()


def disarm(agent: Agent, root: Path) -> None:
    for path in root.glob("f*"):
        if MARKER in os.listxattr(path):
            os.removexattr(path, MARKER)
    agent.order("disarm")
    agent.until("ended")
    agent.end()
    wait_until(lambda: not agent.rig.processes(), "keeper and standby have ended")


OPENS = {
    "read": ("os.open(p, os.O_RDONLY)", {"read"}),
    "write": ("os.open(p, os.O_WRONLY)", {"write"}),
    "both": ("os.open(p, os.O_RDWR)", {"write"}),
    "append": ("os.open(p, os.O_WRONLY | os.O_APPEND)", {"write"}),
    "truncate": ("os.open(p, os.O_WRONLY | os.O_TRUNC)", {"truncate"}),
    "truncate(2)": ("os.truncate(p, 3)", {"write", "truncate"}),
    "exec": ("os.chmod(p, 0o755)\ntry: os.execv(p, ['x'])\nexcept OSError: pass", {"read"}),
    "mmap": ("import mmap; mmap.mmap(os.open(p, os.O_RDONLY), 0, prot=mmap.PROT_READ)", {"read"}),
}


@pytest.mark.parametrize("how", OPENS, ids=list(OPENS))
def test_intent(begin: Callable[[str], Agent], root: Path, how: str) -> None:
    code, intents = OPENS[how]
    agent = begin("arm")
    with Task.python(f"p = sys.argv[1]\n{code}", root / "f3") as task:
        fault = agent.until("fault")
        task.held()
        assert (fault["row"], fault["pid"]) == (3, task.pid)
        assert fault["intent"] in intents
        os.removexattr(root / "f3", MARKER)
        agent.order("release", 3)
        task.output()
    disarm(agent, root)


def test_plain_files_and_metadata_are_free(begin: Callable[[str], Agent], root: Path) -> None:
    agent = begin("arm")
    code = (
        "p = sys.argv[1]; open(p + '/plain').read(); os.stat(p + '/f1'); os.listxattr(p + '/f1')\n"
        "os.rename(p + '/f1', p + '/g'); os.rename(p + '/g', p + '/f1'); os.open(p + '/f1', os.O_PATH)\n"
        "os.open(p + '/new', os.O_CREAT | os.O_RDWR)"
    )
    python(code, root)
    disarm(agent, root)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EAGAIN], ids=errno.errorcode.get)
def test_refused(begin: Callable[[str], Agent], root: Path, code: int) -> None:
    """With the errno (EPERM on kernels that cannot pass it on); the placeholder stays guarded."""
    agent = begin("arm")
    for _ in range(2):
        with Task("cat", root / "f2") as task:
            agent.until("fault")
            agent.order("refuse", 2, code)
            status, out, errors = task.finish()
            assert (status, out) == (1, b"")
            assert os.strerror(code).encode() in errors
    disarm(agent, root)


def test_many_tasks_on_one_inode(begin: Callable[[str], Agent], root: Path) -> None:
    agent = begin("arm")
    tasks = [Task("cat", root / "f5") for _ in range(30)]
    agent.tells("pid", {task.pid for task in tasks})
    os.removexattr(root / "f5", MARKER)
    agent.order("release", 5)
    for task in tasks:
        with task:
            assert task.output() == b"content of 5"
    disarm(agent, root)


def test_readers_pass_a_read_gate_and_writers_do_not(begin: Callable[[str], Agent], root: Path) -> None:
    agent = begin("arm")
    with Task("cat", root / "f1") as reader, Task.python("os.open(sys.argv[1], os.O_RDWR)", root / "f1") as writer:
        agent.tells("pid", {reader.pid, writer.pid})
        os.removexattr(root / "f1", MARKER)
        agent.order("release", 1)
        assert reader.output() == b"content of 1"
        writer.output()
    disarm(agent, root)


_OPENAT2 = (
    "import ctypes, struct\n"
    "def openat2(path, flags):\n"
    "    how = struct.pack('=QQQ', flags, 0, 0)\n"
    "    fd = ctypes.CDLL(None, use_errno=True).syscall(437, -100, os.fsencode(path), how, len(how))\n"
    "    assert fd >= 0, os.strerror(ctypes.get_errno())\n"
    "    return fd\n"
)


def test_openat2_at_a_read_gate(begin: Callable[[str], Agent], root: Path) -> None:
    """Its flags lie in memory: who reads complete content passes all the same, who writes waits until it is durable."""
    agent = begin("arm")
    with Task("cat", root / "f1") as task:
        agent.until("fault")
        agent.order("release", 1, "READ")
        assert task.output() == b"content of 1"
    assert python(_OPENAT2 + "print(os.read(openat2(sys.argv[1], os.O_RDONLY), 99))", root / "f1") == b"b'content of 1'\n"
    for flags in ("os.O_RDWR", "os.O_WRONLY", "os.O_RDONLY | os.O_TRUNC"):
        with Task.python(_OPENAT2 + f"openat2(sys.argv[1], {flags})", root / "f1") as writer:
            fault = agent.until("fault")
            assert (fault["pid"], fault["intent"] != "read") == (writer.pid, True)
            writer.held()
            agent.order("refuse", 1, errno.EIO)
            writer.finish()
    disarm(agent, root)


def test_nobody_is_held_at_the_passage(begin: Callable[[str], Agent], root: Path) -> None:
    agent = begin("arm")
    agent.order("open", root / "f4")
    with Task("cat", root / "f4") as task:
        assert agent.until("fault")["row"] == 4
        task.held()
        agent.order("refuse", 4, errno.EIO)
        task.finish()
    disarm(agent, root)


def test_settled_files_are_plain(begin: Callable[[str], Agent], root: Path) -> None:
    """The background has filled these: neither readers nor writers are told of."""
    agent = begin("arm")
    for number in (1, 2):
        os.removexattr(root / f"f{number}", MARKER)
    agent.order("settled", 1, 2, 77)
    run("cat", root / "f1")
    python("os.open(sys.argv[1], os.O_RDWR)", root / "f2")
    with Task("cat", root / "f3") as task:
        assert agent.until("fault")["row"] == 3
        agent.order("refuse", 3, errno.EIO)
        task.finish()
    disarm(agent, root)


@pytest.mark.parametrize("farewell", ["kill", "leave"])
def test_next_agent_gets_every_wait_again(begin: Callable[[str], Agent], root: Path, farewell: str) -> None:
    agent = begin("arm")
    tasks = {number: Task("cat", root / f"f{number}") for number in range(4)}
    agent.tells("row", set(tasks))
    if farewell == "kill":
        agent.kill()
    else:
        agent.order("leave")
        agent.until("ended")
        agent.end()
    tasks |= {number: Task("cat", root / f"f{number}") for number in range(4, 8)}
    for task in tasks.values():
        task.held()
    successor = begin("adopt")
    assert successor.until("adopted")["found"]
    successor.tells("row", set(range(8)))
    for number, task in tasks.items():
        os.removexattr(root / f"f{number}", MARKER)
        successor.order("release", number)
        with task:
            assert task.output() == b"content of %d" % number
    disarm(successor, root)


def test_nothing_to_adopt(begin: Callable[[str], Agent]) -> None:
    agent = begin("adopt")
    assert not agent.until("adopted")["found"]
    agent.kill()


@pytest.mark.parametrize("victims", [["ar-keeper"], ["ar-standby"], ["ar-standby", "ar-keeper"]], ids="-".join)
def test_waits_survive_keepers(begin: Callable[[str], Agent], rig: Rig, root: Path, name: str, victims: list[str]) -> None:
    if name != "fanotify":
        pytest.skip("only fanotify has keepers")
    agent = begin("arm")
    with Task("cat", root / "f6") as task:
        agent.until("fault")
        for victim in victims:
            rig.kill(victim)
        if "ar-keeper" in victims:
            assert agent.until("fault")["row"] == 6
        task.held()
        wait_until(rig.is_guarded, "both are there again")
        os.removexattr(root / "f6", MARKER)
        agent.order("release", 6)
        assert task.output() == b"content of 6"
    disarm(agent, root)


def test_abandoned(begin: Callable[[str], Agent], root: Path) -> None:
    """Who waits and who comes is refused, until the next agent."""
    agent = begin("arm")
    with Task("cat", root / "f0") as task:
        agent.until("fault")
        agent.order("abandon", errno.EIO)
        agent.until("ended")
        agent.end()
        assert task.finish()[0] == 1
    assert refused(root / "f1") == errno.EIO
    successor = begin("adopt")
    assert successor.until("adopted")["found"]
    with Task("cat", root / "f1") as task:
        assert successor.until("fault")["row"] == 1
        os.removexattr(root / "f1", MARKER)
        successor.order("release", 1)
        assert task.output() == b"content of 1"
    disarm(successor, root)


def test_markers_of_others(begin: Callable[[str], Agent], root: Path) -> None:
    """Those of another restore are left alone; a broken one of ours is refused."""
    agent = begin("arm")
    os.setxattr(root / "plain", MARKER, marker_value(marker_prefix("ffeeddccbbaa0011"), 3))
    assert refused(root / "plain") == 0
    (root / "broken").write_bytes(b"x")
    os.setxattr(root / "broken", MARKER, marker_prefix(restore_id_of(root)) + b"\xc1")
    assert refused(root / "broken") in (0, errno.EIO)
    disarm(agent, root)


def test_killed_task(begin: Callable[[str], Agent], root: Path) -> None:
    agent = begin("arm")
    with Task("cat", root / "f7") as task:
        agent.until("fault")
        task.kill()
    os.removexattr(root / "f7", MARKER)
    agent.order("release", 7)
    with Task("cat", root / "f6") as task:
        assert agent.until("fault")["row"] == 6
        os.removexattr(root / "f6", MARKER)
        agent.order("release", 6)
        assert task.output() == b"content of 6"
    disarm(agent, root)


def test_disarm_lets_everybody_go_on(begin: Callable[[str], Agent], rig: Rig, root: Path) -> None:
    agent = begin("arm")
    with Task("cat", root / "f0") as task:
        agent.until("fault")
        os.removexattr(root / "f0", MARKER)
        agent.order("disarm")
        assert task.output() == b"content of 0"
        agent.until("ended")
        agent.end()
    wait_until(lambda: not rig.processes(), "nothing is left")
    agent.child.send_signal(signal.SIGKILL)
