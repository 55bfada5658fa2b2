"""State: lost and rebuilt from the markers, given up for good, and markers that are not what they seem."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from active_restore.control.registry import directory_name
from active_restore.marker import MARKER
from tests.kernel.rig import marked
from tests.kernel.tasks import Task, python, read, refused
from tests.restore.agents import kill, make

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig


def test_lost_state_is_rebuilt(held_rig: Rig, target: Path) -> None:
    names = make(held_rig.tree)
    command = held_rig.hold(target)
    assert read(target / names[0])
    (target / names[1]).rename(target / "elsewhere")
    kill(command)
    python("import shutil; shutil.rmtree(sys.argv[1])", held_rig.place / "state")
    with Task("cat", target / "elsewhere") as task:
        task.held()
        again = held_rig.resume(target)
        assert task.output() == (held_rig.tree / names[1]).read_bytes()
    held_rig.finish(again, target)
    (target / "elsewhere").rename(target / names[1])
    done = held_rig.run("verify", held_rig.source, target, "--extra")
    assert all("mtime" in line or "NOT equal" in line for line in done.stdout.splitlines()[:2]), done.stdout
    held_rig.assert_clean(target)


def test_lost_state_and_another_source(held_rig: Rig, ext4_target: Path) -> None:
    """Rows are counted in the source's order: a source that has changed must not be poured into the wrong files."""
    names = make(held_rig.tree)
    command = held_rig.hold(ext4_target)
    kill(command)
    shutil.rmtree(held_rig.place / "state")
    (held_rig.tree / "a-new-one").write_bytes(b"x" * 777)
    done = held_rig.run("resume", ext4_target)
    assert (done.returncode, "the source is not what it was" in done.stderr) == (1, True), done.stderr
    assert marked(ext4_target / names[0])
    (held_rig.tree / "a-new-one").unlink()
    held_rig.finish(held_rig.resume(ext4_target), ext4_target)
    held_rig.assert_clean(ext4_target)
    assert read(ext4_target / names[0]) == (held_rig.tree / names[0]).read_bytes()


def test_release_refuses(held_rig: Rig, ext4_target: Path) -> None:
    first, second, *_ = make(held_rig.tree)
    command = held_rig.hold(ext4_target)
    kill(command)
    with Task("cat", ext4_target / first) as task:
        task.held()
        assert held_rig.run("release", ext4_target).returncode == 0
        code, out, errors = task.finish()
        assert (code, out) == (1, b"")
        assert b"Input/output error" in errors
    assert refused(ext4_target / second) == 5
    held_rig.finish(held_rig.resume(ext4_target), ext4_target)
    held_rig.verify(ext4_target)


def test_a_copied_marker_is_nobodys_placeholder(held_rig: Rig, target: Path) -> None:
    """State is lost, and the only inode with some row's marker is a user's own file: it is not restored over."""
    names = make(held_rig.tree)
    command = held_rig.hold(target)
    (target / "mine").write_bytes(b"my own bytes")
    os.setxattr(target / "mine", MARKER, os.getxattr(target / names[0], MARKER))
    os.unlink(target / names[0])
    kill(command)
    shutil.rmtree(held_rig.place / "state")
    held_rig.finish(held_rig.resume(target), target)
    assert read(target / "mine") == b"my own bytes"
    assert not (target / names[0]).exists()


def test_immutable_file_does_not_hold_up_the_end(held_rig: Rig, ext4_target: Path) -> None:
    """chattr opens the file, so it is filled; that its marker cannot be taken away any more is no reason to fail."""
    first, *_ = make(held_rig.tree)
    command = held_rig.hold(ext4_target)
    subprocess.run(["chattr", "+i", ext4_target / first], check=True)
    try:
        assert read(ext4_target / first) == (held_rig.tree / first).read_bytes()
        held_rig.finish(command, ext4_target)
        assert read(ext4_target / first) == (held_rig.tree / first).read_bytes()
    finally:
        subprocess.run(["chattr", "-i", ext4_target / first], check=True)


def test_leftovers_of_others_are_swept(held_rig: Rig, ext4_target: Path) -> None:
    """An agent was killed while it forgot its restore: the next command takes the rest away, and nothing that is in use."""
    make(held_rig.tree)
    command = held_rig.hold(ext4_target)
    state = held_rig.place / "state"
    for name in ("0" * 16, "1" * 16):
        (state / name).mkdir()
    (state / ("1" * 16) / "agent.lock").touch()
    mine = state / "passwords" / "restic"
    mine.parent.mkdir()
    mine.touch()
    done = held_rig.run("resume", held_rig.place / "nowhere")
    assert "no restore is known" in done.stderr
    assert mine.exists()
    shutil.rmtree(mine.parent)
    assert [path.name for path in state.iterdir()] == [directory_name(str(ext4_target))]
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)
    held_rig.assert_clean(ext4_target)
