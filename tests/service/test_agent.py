"""The service: every unfinished restore gets an agent, whatever dies, and nobody reads zeros meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from active_restore.control.registry import directory_name
from active_restore.errors import NotRunning
from active_restore.restore.job import lock_file
from tests.cli.test_end_to_end import fill
from tests.kernel.disks import mounted
from tests.kernel.rig import marked
from tests.kernel.tasks import read
from tests.kernel.waiting import wait_until
from tests.restore.agents import make
from tests.torture.test_rolled_back import end, settled, undoable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.disks import Disk
    from tests.kernel.rig import Rig
    from tests.service.conftest import Init


@pytest.fixture
def unfinished(held_rig: Rig, ext4_target: Path) -> Rig:
    """A restore whose agent was killed; its keepers live."""
    fill(held_rig.tree)
    agent = held_rig.hold(ext4_target)
    agent.kill()
    return held_rig


@contextlib.contextmanager
def reader(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A task that reads a file, waiting as long as it must."""
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as task:
        try:
            yield task
        finally:
            task.kill()


def finish(rig: Rig, init: Init, target: Path) -> None:
    """Let the restore end; the service stays, with nothing in hand."""
    rig.hurry(target)
    init.wait(lambda: not (rig.place / "state" / directory_name(str(target))).exists(), "the end of the restore")
    init.wait(lambda: not init.kept, "nothing is kept any more")
    assert init.stop() == 0
    rig.verify(target)


def finish_by_hand(rig: Rig, target: Path) -> None:
    """Let the restore end, whoever serves it."""
    rig.hurry(target)
    wait_until(lambda: not (rig.place / "state" / directory_name(str(target))).exists(), "the end of the restore")


def guarded(rig: Rig, target: Path) -> bool:
    with contextlib.suppress(NotRunning), rig.control(target) as control:
        return control.status().phase == "restoring"
    return False


def resumers(rig: Rig) -> list[int]:
    return rig.processes("resume")


def test_it_goes_on_with_what_it_finds(unfinished: Rig, init: Init, ext4_target: Path) -> None:
    with reader(ext4_target / "c/file07") as task:
        init.start()
        init.until("READY")
        out, err = task.communicate(timeout=60)
    assert (out, err) == ((unfinished.tree / "c/file07").read_bytes(), b"")
    init.until("WATCHDOG")
    finish(unfinished, init, ext4_target)


def test_nothing_to_do(held_rig: Rig, init: Init) -> None:
    init.start()
    init.until("READY")
    init.until("WATCHDOG")
    assert init.stop() == 0
    assert not held_rig.processes()


def test_an_agent_that_dies_is_replaced(unfinished: Rig, init: Init, ext4_target: Path) -> None:
    init.start()
    init.until("READY")
    (first,) = resumers(unfinished)
    os.kill(first, signal.SIGKILL)
    with reader(ext4_target / "b/file03") as task:
        assert task.communicate(timeout=60)[0] == (unfinished.tree / "b/file03").read_bytes()
    assert resumers(unfinished) != [first]
    finish(unfinished, init, ext4_target)


def test_the_service_dies_and_tasks_wait_for_the_next(unfinished: Rig, init: Init, ext4_target: Path) -> None:
    init.start()
    init.until("READY")
    init.kill()
    wait_until(lambda: not resumers(unfinished), "its child ends with it")
    with reader(ext4_target / "b/file03") as task:
        init.start()
        init.until("READY")
        assert task.communicate(timeout=60)[0] == (unfinished.tree / "b/file03").read_bytes()
    finish(unfinished, init, ext4_target)


def test_agent_and_all_keepers_die_at_once(unfinished: Rig, init: Init, ext4_target: Path) -> None:
    """Our copies of the guard keep the tasks waiting; a new keeper takes over."""
    init.start()
    init.until("READY")
    init.wait(lambda: len(init.kept) == 3, "the guard is stored")
    everything_dies(unfinished)
    with reader(ext4_target / "b/file03") as task:
        assert task.communicate(timeout=60)[0] == (unfinished.tree / "b/file03").read_bytes()
    finish(unfinished, init, ext4_target)


def everything_dies(rig: Rig) -> None:
    """SIGKILL to agent, workers and keepers, keepers that are just being started included."""
    agents = resumers(rig)
    assert agents
    for pid in agents:
        os.kill(pid, signal.SIGSTOP)
    rig.kill("intercept.keeper")
    for pid in agents:
        os.kill(pid, signal.SIGKILL)


def test_the_service_dies_with_all_of_them(unfinished: Rig, init: Init, ext4_target: Path) -> None:
    """Nothing of us is left but the copies that systemd holds."""
    init.start()
    init.until("READY")
    init.wait(lambda: len(init.kept) == 3, "the guard is stored")
    with contextlib.ExitStack() as stack:
        assert init.process is not None
        init.process.send_signal(signal.SIGSTOP)
        everything_dies(unfinished)
        init.kill()
        wait_until(lambda: not unfinished.processes(), "all are dead")
        waiting = [stack.enter_context(reader(ext4_target / f"b/file0{number}")) for number in range(5)]
        init.start()
        for number, task in enumerate(waiting):
            out, err = task.communicate(timeout=60)
            assert (out, err) == ((unfinished.tree / f"b/file0{number}").read_bytes(), b"")
    init.until("READY")
    finish(unfinished, init, ext4_target)


def test_the_source_is_away_when_it_starts(unfinished: Rig, init: Init, ext4_target: Path) -> None:
    """As in a boot before the network: guarded at once, content when it can be had."""
    gone = unfinished.tree.with_name("gone")
    unfinished.tree.rename(gone)
    unfinished.kill("intercept.keeper")
    init.start()
    init.until("READY")
    with reader(ext4_target / "b/file03") as task:
        with unfinished.control(ext4_target) as control:
            wait_until(lambda: control.status().waiting, "the task waits")
        gone.rename(unfinished.tree)
        assert task.communicate(timeout=60)[0] == (unfinished.tree / "b/file03").read_bytes()
    finish(unfinished, init, ext4_target)


def test_what_a_user_stops_stays_stopped_until_the_service_starts(held_rig: Rig, init: Init, ext4_target: Path) -> None:
    fill(held_rig.tree)
    init.start()
    init.until("READY")
    agent = held_rig.hold(ext4_target)
    agent.signal(signal.SIGINT)
    assert agent.end()[0] == 130
    init.words.clear()
    init.until("STATUS", "1 unfinished restores, 0 of them served by this service")
    assert not resumers(held_rig)
    assert init.stop() == 0
    init.start()
    init.until("READY")
    assert resumers(held_rig)
    finish(held_rig, init, ext4_target)


def test_a_restore_whose_agent_was_killed_is_taken_over(held_rig: Rig, init: Init, ext4_target: Path) -> None:
    fill(held_rig.tree)
    init.start()
    init.until("READY")
    agent = held_rig.hold(ext4_target)
    init.words.clear()
    init.until("STATUS", "1 unfinished restores, 0 of them served by this service")
    agent.kill()
    init.wait(lambda: guarded(held_rig, ext4_target), "another agent")
    finish(held_rig, init, ext4_target)


def test_the_guard_of_a_users_restore_is_kept_too(held_rig: Rig, init: Init, ext4_target: Path) -> None:
    fill(held_rig.tree)
    init.start()
    init.until("READY")
    agent = held_rig.hold(ext4_target)
    init.wait(lambda: len(init.kept) == 3, "the guard is stored")
    agent.signal(signal.SIGSTOP)
    held_rig.kill("intercept.keeper")
    agent.kill()
    with reader(ext4_target / "b/file03") as task:
        assert task.communicate(timeout=60)[0] == (held_rig.tree / "b/file03").read_bytes()
    finish(held_rig, init, ext4_target)


def test_a_guard_that_a_new_keeper_would_wait_for_itself_is_not_kept(held_rig: Rig, init: Init, ext4: Disk) -> None:
    """State on the guarded file system: were all keepers dead and the guard alive, the service could not read it."""
    fill(held_rig.tree)
    state = ext4.mount / "state"
    held_rig.env["ACTIVE_RESTORE_STATE"] = str(state)
    target = ext4.mount / "beside"
    init.start()
    init.until("READY")
    agent = held_rig.hold(target)
    init.words.clear()
    init.until("STATUS", "1 unfinished restores, 0 of them served by this service")
    assert init.kept == {}
    held_rig.finish(agent, target)
    assert init.stop() == 0
    assert list(state.iterdir()) == []


def test_stopping_leaves_the_keepers(unfinished: Rig, init: Init, ext4_target: Path) -> None:
    init.start()
    init.until("READY")
    assert init.stop() == 0
    assert not resumers(unfinished)
    assert unfinished.processes("ar-keeper")
    init.start()
    init.until("READY")
    finish(unfinished, init, ext4_target)


def test_a_target_that_is_not_mounted_and_another_whose_state_is_damaged(held_rig: Rig, init: Init, tmp_path: Path) -> None:
    fill(held_rig.tree)
    (held_rig.place / "agent.toml").write_text("[service]\ntarget_wait = 1\nretry = 0.2\n")
    broken = held_rig.place / "state/0123456789abcdef"
    broken.mkdir(parents=True)
    (broken / "restore.json").write_text("{")
    with mounted("ext4", tmp_path / "disk") as disk:
        target = disk.mount / "tree"
        held_rig.hold(target).kill()
        held_rig.kill("intercept.keeper")
        subprocess.run(["umount", disk.mount], check=True)
        init.start()
        init.until("READY")
        assert not resumers(held_rig)
        log = init.log.read_text()
        assert "is not mounted" in log
        assert "damaged" in log
        subprocess.run(["mount", "-o", "loop", disk.mount.with_name("ext4.img"), disk.mount], check=True)
        # Between the mount and this moment nobody guards it: that is what target_wait is for.
        init.wait(lambda: guarded(held_rig, target), "the guard")
        (broken / "restore.json").unlink()
        broken.rmdir()
        with reader(target / "b/file03") as task:
            assert task.communicate(timeout=60)[0] == (held_rig.tree / "b/file03").read_bytes()
        finish(held_rig, init, target)


def test_a_lock_that_outlives_its_agent_is_waited_for(unfinished: Rig, init: Init, ext4_target: Path) -> None:
    """A process that was just forked off a killed agent holds its lock for a moment: nobody guards the target then."""
    with mock.patch.dict(os.environ, unfinished.env):
        lock = os.open(lock_file(directory_name(str(ext4_target))), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    init.start()
    init.until("STATUS", "1 unfinished restores, 0 of them served by this service")
    os.close(lock)
    init.until("READY")
    assert guarded(unfinished, ext4_target)
    finish(unfinished, init, ext4_target)


def test_a_broken_configuration_does_not_leave_anything_unguarded(unfinished: Rig, init: Init, ext4_target: Path) -> None:
    (unfinished.place / "agent.toml").write_text("[mqtt]\nqos = 7\n")
    init.start()
    init.until("READY")
    assert guarded(unfinished, ext4_target)
    assert "mqtt.qos: 7 is not allowed" in init.log.read_text()
    finish_by_hand(unfinished, ext4_target)
    assert init.stop() == 0


def test_metrics_are_there_while_it_runs(unfinished: Rig, init: Init, ext4_target: Path) -> None:
    page = unfinished.place / "active-restore.prom"
    (unfinished.place / "agent.toml").write_text(f"[metrics]\ntextfile = '{page}'\ninterval = 0.1\n")
    init.start()
    init.until("READY")
    up = f'active_restore_agent_up{{target="{ext4_target}"}} 1\n'
    init.wait(lambda: page.exists() and up in page.read_text(), "the metrics")
    assert page.stat().st_mode & 0o777 == 0o644
    finish(unfinished, init, ext4_target)
    assert [path.name for path in unfinished.place.glob("*.prom*")] == []


def test_only_root(held_rig: Rig) -> None:
    argv = held_rig.argv("agent")
    argv[2] = argv[2].replace("run()", "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); run()")
    env = {**held_rig.env, "ACTIVE_RESTORE_CONFIG": "/nonexistent/agent.toml"}
    ended = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr.count("\n")) == (18, 2)


def test_a_target_that_was_rolled_back(held_rig: Rig, init: Init) -> None:
    """Before it is ready it knows what is a placeholder again."""
    first, *_ = make(held_rig.tree)
    with undoable(held_rig, "ext4") as disk:
        command = held_rig.hold(disk.target)
        disk.keep()
        assert read(disk.target / first) == (held_rig.tree / first).read_bytes()
        settled(disk.target / first)
        end(held_rig, command, "all killed")
        disk.put_back()
        init.start()
        init.until("READY")
        assert marked(disk.target / first)
        assert read(disk.target / first) == (held_rig.tree / first).read_bytes()
        finish(held_rig, init, disk.target)
