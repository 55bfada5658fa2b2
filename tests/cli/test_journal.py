"""Lines for the journal: with priorities where it listens, and without them everywhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.test_end_to_end import fill

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig


def lines(rig: Rig, *arguments: str | Path, journal: bool = True) -> list[str]:
    """What a command writes to a pipe that is (or is not) the journal's."""
    read, write = os.pipe()
    found = os.fstat(write)
    stream = f"{found.st_dev}:{found.st_ino + (0 if journal else 1)}"
    with subprocess.Popen(rig.argv(*arguments), env={**rig.env, "JOURNAL_STREAM": stream}, stdout=write, stderr=write):
        os.close(write)
        with open(read) as pipe:
            return pipe.read().splitlines()


def test_priorities(rig: Rig, ext4_target: Path) -> None:
    fill(rig.tree)
    told = lines(rig, "restore", rig.source, ext4_target)
    assert all(re.match(r"<[3-7]>\S", line) for line in told), told
    assert [line[:10] for line in told if line[3:].startswith(("planned", "ready", "done"))] == [
        "<5>planned",
        "<5>ready: ",
        "<5>done: 6",
    ]
    rig.verify(ext4_target)


def test_errors(rig: Rig, ext4_target: Path) -> None:
    told = lines(rig, "restore", "dir:/nonexistent", ext4_target)
    assert [line[:27] for line in told] == ["<3>active-restore: error: t", "<3>hint: check the path; is"]


def test_another_pipe_gets_plain_lines(rig: Rig, ext4_target: Path) -> None:
    told = lines(rig, "restore", "dir:/nonexistent", ext4_target, journal=False)
    assert told[0].startswith("active-restore: error: ")


@pytest.mark.parametrize(("level", "expected"), [("info", True), ("error", False)])
def test_the_level_is_configured(rig: Rig, level: str, expected: bool) -> None:
    (rig.place / "agent.toml").write_text(f"[log]\nlevel = '{level}'\n")
    code = "import logging; from active_restore.cli import log\nwith log.to_stderr(debug=False): logging.info('hello')"
    read, write = os.pipe()
    found = os.fstat(write)
    argv = [sys.executable, "-c", code]
    env = {**rig.env, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    subprocess.run(argv, env=env, stderr=write, check=True, timeout=60)
    os.close(write)
    with open(read) as pipe:
        assert pipe.read() == ("<6>hello\n" if expected else "")
