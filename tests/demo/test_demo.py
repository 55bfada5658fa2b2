"""The demonstration runs, tells the truth, and leaves nothing behind, not even when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.fingerprint import differing, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


def start(scratch: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHON": sys.executable}
    command = [str(ROOT / "demo/run"), "--size-mb", "100", "--scratch", str(scratch)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left_behind(scratch: Path) -> list[str]:
    """Mounts, loop devices, processes and files that are still there."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if str(scratch) in line]
    found += [str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file") if str(scratch) in path.read_text()]
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(scratch).encode() in path.read_bytes():
                found.append(path.with_name("cmdline").read_bytes().decode())
        except OSError:
            continue
    return found + [str(path) for path in scratch.iterdir()]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Not the temporary directory itself: its name must be in nobody else's environment."""
    path = tmp_path / "the-demonstration"
    path.mkdir()
    return path


def test_it_runs_and_the_tree_is_identical(scratch: Path) -> None:
    out, err = start(scratch).communicate()
    assert "Traceback" not in err, err
    assert "the database answers" in out
    assert "a program out of the tree has run" in out
    assert "names of the lost disk: content, owner, permissions and times are identical" in out
    assert "Seconds after the restore began" in out
    assert left_behind(scratch) == []


@pytest.mark.parametrize("at", ["backup of it", "$ restic restore", "$ active-restore restore", "every file is there"])
def test_interrupted_it_leaves_nothing(scratch: Path, at: str) -> None:
    running = start(scratch)
    assert running.stdout is not None
    for line in running.stdout:
        if at in line:
            break
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode == 130, err
    assert left_behind(scratch) == []


def _grow(path: Path) -> None:
    path.write_bytes(b"other content")


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    "change",
    [_grow, _touch, Path.unlink, lambda path: path.chmod(0o600), lambda path: os.setxattr(path, "user.x", b"1")],
    ids=["content", "time", "missing", "mode", "attribute"],
)
def test_the_comparison_sees_one_change(tmp_path: Path, change: Callable[[Path], object]) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("one", "two"):
        (tree / name).write_text(name)
    before = fingerprint(tree)
    assert differing(before, fingerprint(tree)) == []
    change(tree / "two")
    assert differing(before, fingerprint(tree)) == ["two"]
