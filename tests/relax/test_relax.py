"""Relax mode: the service that learns by itself what is opened first, over kills, restarts, reboots and unmounts."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from active_restore.errors import UsageError
from active_restore.predict.learning import Learning, Worth
from active_restore.predict.units import Who
from tests.kernel.disks import mounted
from tests.kernel.tasks import Task, read
from tests.kernel.waiting import wait_until
from tests.relax.conftest import recorded

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig
    from tests.relax.conftest import Relaxed


@pytest.fixture
def tree(ext4_target: Path) -> Path:
    """Some files in two directories."""
    (ext4_target / "deep").mkdir(parents=True)
    for name in "abcdefgh":
        (ext4_target / name).write_bytes(name.encode())
        (ext4_target / "deep" / name).write_bytes(name.encode())
    return ext4_target


def reboot(rig: Rig) -> None:
    """What it does to the run directory."""
    for path in (rig.place / "run").iterdir():
        path.unlink()


def test_it_learns_by_itself_and_saves_when_asked_and_at_its_end(rig: Rig, relaxed: Relaxed, tree: Path) -> None:
    relaxed.start(tree)
    read(tree / "b")
    read(tree / "deep/a")
    read(tree / "b")
    relaxed.hurry()
    wait_until(lambda: recorded(tree) == ["b", "deep/a"], "it is saved")
    read(tree / "a")
    assert relaxed.stop() == 0
    assert recorded(tree) == ["b", "deep/a", "a"]
    shown = rig.run("record", "show", tree)
    assert shown.returncode == 0
    assert "3 files of " in shown.stdout


def test_a_new_one_goes_on_where_a_killed_one_was(relaxed: Relaxed, tree: Path) -> None:
    relaxed.start(tree)
    read(tree / "b")
    relaxed.hurry()
    wait_until(lambda: recorded(tree) == ["b"], "it is saved")
    relaxed.kill()
    relaxed.start(tree)
    for name in ("a", "b", "c"):
        read(tree / name)
    assert relaxed.stop() == 0
    assert recorded(tree) == ["b", "a", "c"]


def test_after_a_reboot_the_old_order_stays_behind_the_new_one_until_that_is_learned(
    rig: Rig, relaxed: Relaxed, tree: Path
) -> None:
    relaxed.start(tree)
    for name in ("a", "b", "c"):
        read(tree / name)
    assert relaxed.stop() == 0
    reboot(rig)
    relaxed.start(tree)
    read(tree / "c")
    read(tree / "d")
    assert relaxed.stop() == 0
    assert recorded(tree) == ["c", "d", "a", "b"]
    # Within the same boot: what lies behind stays there.
    relaxed.start(tree)
    read(tree / "b")
    assert relaxed.stop() == 0
    assert recorded(tree) == ["c", "d", "b", "a"]
    reboot(rig)
    relaxed.start(tree, settings="learn = 0.05")
    read(tree / "e")

    def learned() -> bool:
        relaxed.hurry()
        return recorded(tree) == ["e"]

    wait_until(learned, "the old order is gone")
    assert relaxed.stop() == 0


def test_a_file_that_is_just_being_made(relaxed: Relaxed, tree: Path) -> None:
    """Opened while it is empty, it is noted when it is opened again with content."""
    relaxed.start(tree)
    with (tree / "new").open("w") as file:
        read(tree / "a")
        relaxed.catch_up()
        assert recorded(tree) == ["a"]
        file.write("content")
    read(tree / "new")
    assert relaxed.stop() == 0
    assert recorded(tree) == ["a", "new"]


def test_a_damaged_order_is_replaced(relaxed: Relaxed, tree: Path) -> None:
    (tree / ".active_restore_order").write_bytes(b"nonsense")
    relaxed.start(tree)
    read(tree / "a")
    assert relaxed.stop() == 0
    assert recorded(tree) == ["a"]


def test_who_is_ignored_does_not_hide_what_others_open(relaxed: Relaxed, tree: Path) -> None:
    relaxed.start(tree, settings='ignore = ["tail*"]')
    with Task("tail", "-f", *(tree / name for name in "abc")) as crawler:
        # Until the last name is printed.
        for _ in range(5):
            crawler.line()
        relaxed.catch_up()
    for name in "cb":
        read(tree / name)
    assert relaxed.stop() == 0
    assert recorded(tree) == ["c", "b"]


def test_only_the_first_moments_of_a_unit_are_learned(relaxed: Relaxed, tree: Path) -> None:
    relaxed.start(tree, settings="learn = 0.0001")
    # One process: what has ended before it is looked at is of no known unit.
    code = "for name in sys.argv[1:]:\n    print(open(name).read(), flush=True)\n    input()"
    with Task.python(code, tree / "a", tree / "b") as task:
        for name in (b"a\n", b"b\n"):
            assert task.line() == name
            relaxed.catch_up()
            task.say(b"\n")
        task.output()
    assert relaxed.stop() == 0
    assert recorded(tree) == ["a"]


def test_a_restore_and_its_proof_are_nothing_to_learn(rig: Rig, relaxed: Relaxed, ext4_target: Path) -> None:
    for number in range(200):
        (rig.tree / f"file{number}").write_bytes(b"content" * number)
    relaxed.start(ext4_target.parent)
    command = rig.restore(ext4_target)
    read(ext4_target / "file77")
    rig.finish(command, ext4_target)
    done = rig.run("verify", rig.source, ext4_target)
    assert done.returncode == 0, done.stderr
    assert relaxed.stop() == 0
    order = ext4_target.parent / ".active_restore_order"
    assert recorded(ext4_target.parent) == [f"{ext4_target.name}/file77"]
    order.unlink()


def test_file_systems_come_and_go(relaxed: Relaxed, tmp_path: Path) -> None:
    with mounted("ext4", tmp_path / "disk") as disk:
        subprocess.run(["umount", disk.mount], check=True)
        image = disk.mount.with_name("ext4.img")
        missing = disk.mount / "data"
        relaxed.start(missing)
        wait_until(lambda: "cannot be recorded" in relaxed.log, "it says so")
        subprocess.run(["mount", "-o", "loop", image, disk.mount], check=True)
        missing.mkdir()
        relaxed.hurry()
        relaxed.until("STATUS", "1 of 1 directories are watched")
        (missing / "a").write_text("a")
        read(missing / "a")
        relaxed.hurry()
        wait_until(lambda: recorded(missing) == ["a"], "it is saved")
        # Nothing of it is held open, but in the moment in which it is saved.
        wait_until(lambda: subprocess.run(["umount", disk.mount], check=False).returncode == 0, "it is unmounted")
        relaxed.until("STATUS", "0 of 1 directories are watched")
        subprocess.run(["mount", "-o", "loop", image, disk.mount], check=True)
        relaxed.hurry()
        relaxed.until("STATUS", "1 of 1 directories are watched")
        (missing / "b").write_text("b")
        read(missing / "b")
        assert relaxed.stop() == 0
        assert recorded(missing) == ["a", "b"]


def test_nothing_to_watch_is_an_error(rig: Rig) -> None:
    done = rig.run("relax")
    assert done.returncode == UsageError.exit_code
    assert "[relax] directories names nothing to watch" in done.stderr


def test_a_crawler_is_not_learned_for_ever() -> None:
    learning = Learning(0, ["updatedb*"])
    assert learning.of(Who("cron.service", "updatedb.mlocat")) is Worth.IGNORED
    assert learning.of(Who("active-restore@web.service", "python3")) is Worth.IGNORED
    found = [learning.of(Who("a.service", "grep")) for _ in range(20_001)]
    assert set(found[:-1]) == {Worth.NOTED}
    assert found[-1] is Worth.LEARNED
    assert learning.of(Who("b.service", "grep")) is Worth.NOTED
