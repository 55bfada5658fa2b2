"""Keepers and those who stand by, where the agent that starts them is no help."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from active_restore.intercept.fanotify import FanotifyInterceptor
from active_restore.intercept.keepers import Keepers, open_log
from active_restore.linux.process import is_alive
from active_restore.marker import MARKER, marker_value
from active_restore.model import Gate
from tests.cli.machine import ROOT
from tests.intercept.test_contract import Agent, disarm
from tests.kernel.rig import Rig
from tests.kernel.tasks import Task, read, run
from tests.kernel.waiting import DEADLINE_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from active_restore.intercept.base import Territory
    from active_restore.intercept.keepers import Link
    from active_restore.model import Fault
    from tests.kernel.disks import Disk


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "it has ended")


def _stand_by_for_nobody(link: Link, territory: Territory) -> None:
    """Start a standby like an agent that is killed before it is told that it stands."""
    read, write = os.pipe()
    os.close(read)
    watch = os.pidfd_open(link.ledger.keeper)
    inherited = [link.group, link.ledger.fd, link.listener, write, watch]
    words = [*map(str, inherited), str(link.ledger.mask), territory.marker_prefix.hex()]
    command = [sys.executable, "-P", "-m", "active_restore.intercept.keeper", *words]
    subprocess.run(command, pass_fds=inherited, cwd="/", check=True)
    for fd in (write, watch):
        os.close(fd)


def _left_by_an_agent(territory: Territory) -> Link:
    """Of a keeper and a standby whose agent has left: what they hold, with descriptors of our own."""
    agent = FanotifyInterceptor()
    agent.arm(territory)
    link, _ = agent._linked()
    wait_until(lambda: is_alive(link.ledger.standby), "somebody stands by")
    kept = link._replace(group=os.dup(link.group), listener=os.dup(link.listener))
    agent.leave()
    return kept


def test_standby_outlives_the_agent_that_started_it(territory: Territory) -> None:
    """It may be all that is left of the guard: who dies then lets everybody through to what is not restored yet."""
    kept = _left_by_an_agent(territory)
    _end(kept.ledger.standby)
    before = kept.ledger.standby
    _stand_by_for_nobody(kept, territory)
    wait_until(lambda: kept.ledger.standby not in (0, before), "the new one stands by")
    standby = kept.ledger.standby
    _end(kept.ledger.keeper)
    for fd in (kept.group, kept.listener):
        os.close(fd)
    wait_until(lambda: kept.ledger.keeper == standby, "it has taken over")
    second = FanotifyInterceptor()
    assert second.adopt(territory)
    assert second.keeper_pid == standby
    second.disarm()
    wait_until(lambda: not is_alive(standby), "the keeper has ended")


def test_stopgap_stays_while_no_agent_lives(territory: Territory) -> None:
    """Nobody would take the place of the standby, should that be killed, too. Somebody may stop it; an agent lets it go on."""
    kept = _left_by_an_agent(territory)
    dead = kept.ledger.keeper
    for pid in (kept.ledger.standby, dead):
        _end(pid)
    log = open_log(territory.run_dir)
    with contextlib.ExitStack() as stack:
        with socket.socket(fileno=kept.listener) as listener:
            stopgap = Keepers(kept.group, kept.ledger, listener, territory.marker_prefix, kept.ledger.mask, log).start(dead)
            stack.callback(_disarm, FanotifyInterceptor(), territory)
            stack.callback(_let_go_on, stopgap)
            wait_until(lambda: kept.ledger.keeper == stopgap, "a copy of ourselves has taken over")
            before = kept.ledger.standby
            _stand_by_for_nobody(kept, territory)
        os.close(log)
        os.close(kept.group)
        wait_until(lambda: kept.ledger.standby not in (0, before), "somebody stands by for it")
        # It looks whether it is to go before each event that it reads.
        for name in ("first", "second"):
            Path(territory.root, name).touch()
            assert read(Path(territory.root, name)) == b""
        assert kept.ledger.keeper == stopgap
        # Its command line is not a keeper's.
        os.kill(stopgap, signal.SIGSTOP)
        wait_until(lambda: " (ar-keeper) T " in Path(f"/proc/{stopgap}/stat").read_text(), "it is stopped")
        agent = FanotifyInterceptor()
        assert agent.adopt(territory)
        wait_until(lambda: not is_alive(stopgap), "it goes when there is an agent")
        agent.leave()
        wait_until(lambda: kept.ledger.keeper != stopgap, "the standby has taken over")


def _let_go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def one_disk(ext4: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent on whose guarded file system its program, modules and log lie, too, as on a machine with one disk."""
    place = ext4.mount / tmp_path.name
    root = place / "root"
    root.mkdir(parents=True)
    shutil.copy(os.path.realpath(sys.executable), place / "python")
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    rig = Rig(place, place)
    rig.env["PYTHONPATH"] = str(shutil.copytree(ROOT / "agent", place / "agent"))
    agent = Agent(rig, "fanotify", root, "arm")
    try:
        agent.until("armed")
        agent.order("laid")
        wait_until(rig.is_guarded, "keeper and standby are there")
        yield agent
        disarm(agent, root)
    finally:
        agent.kill()
        rig.end()
        shutil.rmtree(place)


def _keepers(agent: Agent) -> dict[str, int]:
    return {comm: pid for pid, comm in agent.rig.names() if comm in ("ar-keeper", "ar-standby")}


def _guards_again(agent: Agent) -> None:
    """Somebody answers, and it becomes a small process again that has one like it standing by."""
    run("sh", "-c", 'echo content > "$0"', agent.rig.place / "file")
    wait_until(agent.rig.is_guarded, "a keeper and a standby that are programs")
    assert read(agent.rig.place / "file") == b"content\n"


def test_all_keepers_dead(one_disk: Agent) -> None:
    """No program can be started then, and no file opened: the agent makes one of itself."""
    for _ in range(2):
        victims = _keepers(one_disk).values()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid in victims:
            _end(pid)
        _guards_again(one_disk)


def test_keeper_dies_while_its_standby_starts(one_disk: Agent) -> None:
    """Whose program cannot be read any more then."""
    tasks = Path(f"/proc/{one_disk.child.pid}/task")
    for _ in range(2):
        victims = _keepers(one_disk)
        _end(victims["ar-standby"])
        wait_until(lambda: any((task / "children").read_text() for task in tasks.iterdir()), "the next one starts")
        _end(victims["ar-keeper"])
        _guards_again(one_disk)


def _awaits_its_turn(pid: int) -> bool:
    return any(line.split()[1:3] == ["->", "FLOCK"] and str(pid) in line.split() for line in _locks())


def _locks() -> list[str]:
    return Path("/proc/locks").read_text().splitlines()


def test_of_two_who_stand_by_one_takes_over(territory: Territory) -> None:
    """Two who read the same group answer each other's events: tasks would go on before their file is there."""
    kept = _left_by_an_agent(territory)
    earlier = kept.ledger.standby
    _stand_by_for_nobody(kept, territory)
    wait_until(lambda: kept.ledger.standby not in (0, earlier), "another one stands by")
    both = {earlier, kept.ledger.standby}
    _end(kept.ledger.keeper)
    for fd in (kept.group, kept.listener):
        os.close(fd)
    wait_until(lambda: kept.ledger.keeper in both, "one has taken over")
    (other,) = both - {kept.ledger.keeper}
    wait_until(lambda: _awaits_its_turn(other), "the other one waits")
    _end(kept.ledger.keeper)
    wait_until(lambda: kept.ledger.keeper == other, "it is its turn")
    _disarm(FanotifyInterceptor(), territory)


@contextlib.contextmanager
def _heard(interceptor: FanotifyInterceptor) -> Iterator[list[Fault]]:
    """What it is told, by a thread that ends with the block, whatever happens in it."""
    faults: list[Fault] = []
    thread = threading.Thread(target=interceptor.serve, args=(faults.append,), daemon=True)
    thread.start()
    try:
        yield faults
    finally:
        interceptor.leave()
        thread.join(DEADLINE_S)


def test_an_answer_that_comes_after_the_farewell_is_none(territory: Territory) -> None:
    """A thread of an agent that leaves has just filled a file; then the keeper dies: the task waits on, and is not refused."""
    path = os.path.join(territory.root, "late")
    with open(path, "wb") as file:
        file.write(b"content")
    first, second, last = FanotifyInterceptor(), FanotifyInterceptor(), FanotifyInterceptor()
    first.arm(territory)
    first.laid()
    os.setxattr(path, MARKER, marker_value(territory.marker_prefix, 1))
    with contextlib.ExitStack() as stack:
        stack.callback(os.unlink, path)
        stack.callback(_disarm, last, territory)
        task = stack.enter_context(Task("cat", path))
        with _heard(first) as faults:
            wait_until(lambda: faults, "the fault is told")
        first.release(1, Gate.READ, faults)
        keeper, ledger = first.keeper_pid, first._linked()[0].ledger
        _end(keeper)
        wait_until(lambda: ledger.keeper not in (0, keeper), "the standby has taken over")
        assert second.adopt(territory)
        with _heard(second) as again:
            wait_until(lambda: again or task.ended(), "it is told again")
            assert not task.ended(), task.finish()
            second.release(1, Gate.READ, again)
            assert task.output() == b"content"


def _disarm(interceptor: FanotifyInterceptor, territory: Territory) -> None:
    """Whoever guards it now."""
    assert interceptor.adopt(territory)
    keeper = interceptor.keeper_pid
    interceptor.disarm()
    wait_until(lambda: not is_alive(keeper), "the keeper has ended")
