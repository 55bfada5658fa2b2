"""With the agent dead, gone or overwhelmed, tasks wait or are refused; they never see zeros and none waits for ever."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import program
from active_restore.intercept.bpf_lsm import BpfInterceptor
from active_restore.intercept.pins import Pins, directory
from tests.kernel.disks import restore_id_of
from tests.vm.inside.agent_process import content
from tests.vm.inside.territory import Child, Guarded, python, state_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_READERS, _ROUNDS = 50, int(os.environ.get("ACTIVE_RESTORE_KILLS", "8"))
_STAGES = ("fault", "written", "unmarked", "released")
# Reads every 50th file and says which are not what they should be.
_READER = """
    for (my $row = shift; $row <= $ARGV[0]; $row += 50) {
        open(my $file, "<", "$ARGV[1]/$row") or die "$row: $!\\n";
        local $/; my $text = <$file>;
        $text eq "$row\\n" x 5000 or print "$row is wrong\\n";
    }
    print "done\\n";
"""


class Agents:
    """Agents of one directory, one after the other; whatever a failed test leaves is ended."""

    def __init__(self, root: Path, run_dir: Path) -> None:
        self.root = root
        self._pid = 0
        words = [sys.executable, "-m", "tests.vm.inside.agent_process", str(root), str(run_dir)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def start(self, start: str, files: int, stage: str = "never", after: int = 0) -> int:
        """A new agent that is about to serve; its process id."""
        self._say(f"{files} {start} {stage} {after}")
        word, self._pid = self._hear()
        assert word == "ready"
        return self._pid

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")

    def _hear(self) -> tuple[str, int]:
        assert self._process.stdout is not None
        word, number = self._process.stdout.readline().split()
        return word, int(number)

    def died(self) -> None:
        """Return when it has killed itself, or somebody else has."""
        assert self._hear() == ("ended", -signal.SIGKILL)
        self._pid = 0

    def kill(self) -> None:
        """SIGKILL to the one that lives."""
        os.kill(self._pid, signal.SIGKILL)
        self.died()

    def finish(self) -> None:
        """Let it end by itself."""
        self._say("finish")
        assert self._hear() == ("ended", 0)
        self._pid = 0

    def end(self) -> None:
        """Kill the one that lives, remove what they pinned."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        self._process.communicate()
        program.unpin(directory(restore_id_of(self.root)))


@pytest.fixture
def agents(disk: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Agents]:
    """Agents for a directory of this test."""
    root = disk / request.node.name
    root.mkdir()
    made = Agents(root, tmp_path)
    yield made
    made.end()


@pytest.mark.ci("6.12")
@pytest.mark.timeout(900 + 60 * _ROUNDS)
def test_killed_again_and_again(agents: Agents) -> None:
    root, files = agents.root, _READERS * (_ROUNDS // 2 + 1)
    agents.start("arm", files, "fault", 3)
    readers = [Child("perl", "-e", _READER, str(first), str(files), root) for first in range(1, _READERS + 1)]
    for index in range(_ROUNDS):
        agents.died()
        agents.start("adopt", files, _STAGES[index % len(_STAGES)], index % 5)
    agents.died()
    agents.start("adopt", files)
    assert [reader.finish() for reader in readers] == ["done\n"] * _READERS
    agents.finish()
    assert not directory(restore_id_of(root)).exists()


@pytest.mark.ci
def test_held_while_nobody_is_there(agents: Agents) -> None:
    """Readers that come when the agent is dead are stopped and found by the next one."""
    agents.start("arm", 4)
    agents.kill()
    reader = Child("cat", agents.root / "1")
    until(lambda: state_of(reader.pid) == "T", "the stop, once the agent's heartbeat is old")
    late = Child("cat", agents.root / "2")
    until(lambda: state_of(late.pid) == "T", "the stop of a reader who came later")
    agents.start("adopt", 4)
    assert reader.finish() == content(1).decode()
    assert late.finish() == content(2).decode()
    agents.finish()


def test_another_file_system_under_the_number(tmp_path: Path) -> None:
    """What a dead agent left holds its own file system when that comes back, and none that has its device meanwhile."""
    mount = tmp_path / "mount"
    mount.mkdir()
    ours, other = (tmp_path / name for name in ("ours.img", "other.img"))
    for image in (ours, other):
        with image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    loop = subprocess.run(["losetup", "--find", "--show", ours], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["mount", loop, mount], check=True)
    root = mount / "root"
    root.mkdir()
    agents = Agents(root, tmp_path)
    try:
        agents.start("arm", 4)
        before = os.stat(root / "1")
        agents.kill()
        _exchange(loop, mount, other)
        root.mkdir()
        for row in range(1, 5):
            (root / f"{row}").write_text("of another")
        after = os.stat(root / "1")
        assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
        assert Child("cat", root / "1").finish() == "of another"
        _exchange(loop, mount, ours)
        reader = Child("cat", root / "1")
        until(lambda: state_of(reader.pid) == "T", "the stop, without an agent")
        agents.start("adopt", 4)
        assert reader.finish() == content(1).decode()
        agents.finish()
    finally:
        agents.end()
        _unmount(mount)
        subprocess.run(["losetup", "--detach", loop], check=True)


def _unmount(mount: Path) -> None:
    """The agent that has just died had a mount of its own."""
    until(lambda: subprocess.run(["umount", mount], check=False, capture_output=True).returncode == 0, "an idle mount")


def _exchange(loop: str, mount: Path, image: Path) -> None:
    """Another disk in the same drive."""
    _unmount(mount)
    subprocess.run(["losetup", "--detach", loop], check=True)
    until(lambda: subprocess.run(["losetup", loop, image], check=False).returncode == 0, "a free loop device")
    subprocess.run(["mount", loop, mount], check=True)


def test_stuck_agent_recovers(agents: Agents) -> None:
    """An agent that is stopped itself for a while counts as dead; afterwards it lets go whom it stopped."""
    agent = agents.start("arm", 4)
    os.kill(agent, signal.SIGSTOP)
    reader = Child("cat", agents.root / "1")
    until(lambda: state_of(reader.pid) == "T", "the stop, once the agent's heartbeat is old")
    os.kill(agent, signal.SIGCONT)
    assert reader.finish() == content(1).decode()
    agents.finish()


def test_leave_and_adopt(disk: Path, tmp_path: Path) -> None:
    guarded = Guarded(disk / "left", tmp_path)
    guarded.root.mkdir()
    guarded.interceptor.arm(guarded.territory)
    guarded.serve()
    row = guarded.lay("file", b"content\n")
    child = Child("cat", guarded.paths[row])
    guarded.parked(child.pid)
    guarded.interceptor.leave()
    guarded.join()
    until(lambda: state_of(child.pid) == "T", "the stop after the agent left")
    guarded.interceptor = BpfInterceptor()
    guarded.faults.clear()
    assert guarded.interceptor.adopt(guarded.territory)
    guarded.serve()
    guarded.faulted(row)
    guarded.fill(row)
    assert child.finish() == "content\n"
    guarded.interceptor.disarm()
    guarded.join()


def test_abandon_refuses_everybody(disk: Path, tmp_path: Path) -> None:
    guarded = Guarded(disk / "abandoned", tmp_path)
    guarded.root.mkdir()
    guarded.interceptor.arm(guarded.territory)
    guarded.serve()
    row = guarded.lay("file", b"content\n")
    attempt = "import sys\ntry: open(sys.argv[1])\nexcept OSError as error: print(error.errno)"
    child = python(attempt, guarded.paths[row])
    guarded.parked(child.pid)
    guarded.interceptor.abandon(errno.EIO)
    guarded.join()
    assert child.finish() == f"{errno.EIO}\n"
    assert python(attempt, guarded.paths[row]).finish() == f"{errno.EIO}\n"
    guarded.interceptor = BpfInterceptor()
    assert guarded.interceptor.adopt(guarded.territory)
    guarded.interceptor.disarm()


def test_disarm_leaves_no_trace(disk: Path, tmp_path: Path) -> None:
    with Guarded(disk / "gone", tmp_path) as guarded:
        path = guarded.lay_now("file", b"content\n")
        assert Child("cat", path).finish() == "content\n"
        pins = directory(guarded.territory.restore_id)
        assert pins.exists()
    assert not pins.exists()
    assert [path.name for path in tmp_path.glob("bpf.rows")] == []
    assert not BpfInterceptor().adopt(guarded.territory)


@pytest.mark.ci("6.12")
def test_lost_events(disk: Path, tmp_path: Path) -> None:
    """A ring of one page has room for 34 events, and nobody reads while 60 come: the map of waiters is the truth."""
    interceptor = BpfInterceptor(ring_pages=1)
    guarded = Guarded(disk / "lost", tmp_path, interceptor)
    guarded.root.mkdir()
    guarded.interceptor.arm(guarded.territory)
    rows = [guarded.lay(f"file{index}", b"content\n") for index in range(60)]
    guarded.at_once = set(rows)
    code = """
        import pathlib, sys, threading
        def read(index): texts.append(pathlib.Path(sys.argv[1], f"file{index}").read_text())
        texts = []
        threads = [threading.Thread(target=read, args=(index,)) for index in range(60)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(texts.count("content\\n"))
    """
    pins = Pins(directory(guarded.territory.restore_id))
    with interceptor._turn:
        child = python(code, guarded.root)
        until(lambda: pins.counts()["COUNT_RING_FULL"] > 0, "a full ring")
    pins.close()
    guarded.serve()
    assert child.finish() == "60\n"
    guarded.interceptor.disarm()
    guarded.join()


def _are_stopped_and_go_on(guarded: Guarded) -> None:
    row = guarded.lay("file", b"content\n")
    children = [Child("cat", guarded.paths[row]) for _ in range(3)]
    until(lambda: all(state_of(child.pid) == "T" for child in children), "the stops")
    guarded.faulted(row, 3)
    guarded.fill(row)
    assert [child.finish() for child in children] == ["content\n"] * 3


def test_held_by_sigstop_on_request(disk: Path, tmp_path: Path) -> None:
    with Guarded(disk / "stopping", tmp_path, BpfInterceptor(hold="sigstop")) as guarded:
        _are_stopped_and_go_on(guarded)


def _forbid_ptrace() -> None:
    """For this thread and those that it starts, by a filter of system calls (seccomp(2)): EPERM, as Yama says, too."""
    steps = ((0x20, 0, 0, 0), (0x15, 0, 1, 101), (0x06, 0, 0, 0x00050000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000))
    filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("=H6xQ", len(steps), ctypes.addressof(filters)))
    assert ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0


def test_where_ptrace_is_forbidden(disk: Path, tmp_path: Path) -> None:
    """Who would be parked is stopped, and goes on all the same."""
    guarded = Guarded(disk / "locked", tmp_path)

    def begin() -> None:
        _forbid_ptrace()
        guarded.__enter__()

    with ThreadPoolExecutor(1) as locked:
        locked.submit(begin).result()
    try:
        _are_stopped_and_go_on(guarded)
    finally:
        guarded.__exit__()


@pytest.mark.ci("6.12")
def test_threads_that_are_stopped_together(disk: Path, tmp_path: Path) -> None:
    """One SIGSTOP is for the whole process: each of its threads must be interrupted all the same, or it sees errno 513."""
    code = """
        import pathlib, sys, threading
        def read():
            try: seen.append(pathlib.Path(sys.argv[1]).read_text())
            except OSError as error: seen.append(error.errno)
        seen = []
        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(seen)
    """
    with Guarded(disk / "together", tmp_path, BpfInterceptor(hold="sigstop")) as guarded:
        row = guarded.lay("file", b"content")
        child = python(code, guarded.paths[row])
        for _ in range(200):
            until(lambda: state_of(child.pid) == "T", "the stop")
            # All of them come back to the same hook at once.
            os.kill(child.pid, signal.SIGCONT)
        guarded.fill(row)
        assert child.finish() == f"{['content'] * 8}\n"


def test_pins_tell_what_happened(disk: Path, tmp_path: Path) -> None:
    with Guarded(disk / "counted", tmp_path) as guarded:
        path = guarded.lay_now("file", b"content\n")
        Child("cat", path).finish()
        pins = Pins(directory(guarded.territory.restore_id))
        assert pins.counts()["COUNT_HELD"] >= 1
        pins.close()
