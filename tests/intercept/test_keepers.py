"""Keepers and those who stand by, where the agent that starts them is no help."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from active_restore.intercept.fanotify import FanotifyInterceptor
from active_restore.linux.process import is_alive
from active_restore.marker import MARKER, marker_value
from active_restore.model import Gate
from tests.kernel.tasks import Task, read
from tests.kernel.waiting import DEADLINE_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from active_restore.intercept.base import Territory
    from active_restore.intercept.keepers import Link
    from active_restore.model import Fault


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


@pytest.fixture
def on_its_own_disk(territory: Territory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Territory]:
    """A territory on whose file system the agent's program and log lie, too, as on a machine with one disk."""
    place = Path(territory.root).with_name("programs")
    place.mkdir()
    shutil.copy(os.path.realpath(sys.executable), place / "python")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path[1:]))
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    yield dataclasses.replace(territory, run_dir=str(place))
    shutil.rmtree(place)


@contextlib.contextmanager
def _serving(territory: Territory) -> Iterator[Link]:
    """An agent in this very process, with a standby."""
    agent = FanotifyInterceptor()
    agent.arm(territory)
    agent.laid()
    thread = threading.Thread(target=agent.serve, args=(lambda _: None,), daemon=True)
    thread.start()
    link, _ = agent._linked()
    try:
        wait_until(lambda: is_alive(link.ledger.standby), "somebody stands by")
        yield link
    finally:
        agent.disarm()
        thread.join(DEADLINE_S)


def _is_program(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"active_restore.intercept.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _guards_again(territory: Territory, link: Link) -> None:
    """Somebody answers, and it becomes a small process again that has one like it standing by."""
    file = os.path.join(territory.root, "file")
    with open(file, "wb") as made:
        made.write(b"content")
    try:
        wait_until(
            lambda: read(Path(file)) == b"content" and _is_program(link.ledger.keeper) and _is_program(link.ledger.standby),
            "a keeper and a standby that are programs",
        )
    finally:
        os.unlink(file)


def test_all_keepers_dead(on_its_own_disk: Territory) -> None:
    """No program can be started then, and no file opened: the agent makes one of itself."""
    with _serving(on_its_own_disk) as link:
        for _ in range(2):
            victims = {link.ledger.keeper, link.ledger.standby}
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            for pid in victims:
                _end(pid)
            _guards_again(on_its_own_disk, link)


def test_keeper_dies_while_its_standby_starts(on_its_own_disk: Territory) -> None:
    """Whose program cannot be read any more then."""
    with _serving(on_its_own_disk) as link:
        for _ in range(2):
            _end(link.ledger.standby)
            wait_until(lambda: _children(link.ledger.keeper), "the next one starts")
            _end(link.ledger.keeper)
            _guards_again(on_its_own_disk, link)


def _children(keeper: int) -> list[int]:
    """Keepers that are being made by this process."""
    names = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [pid for name in names for pid in map(int, name.read_text().split()) if pid != keeper]


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
