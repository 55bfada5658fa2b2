"""Recording: the first open of each file, in order, by whom, and nobody waits or is disturbed."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from active_restore.predict import carried, order
from active_restore.predict.units import unit_of
from tests.kernel.rig import MIB
from tests.kernel.tasks import Task, python, read
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

NAME = os.fsdecode(order.FILE_NAME)


@pytest.fixture
def tree(target: Path) -> Path:
    """A tree on each kind of file system."""
    (target / "deep/er").mkdir(parents=True)
    for name in ("first", "deep/second", "deep/er/third", "deep/er/again", "unused"):
        (target / name).write_bytes(name.encode())
    (target / "empty").write_bytes(b"")
    (target / "link").symlink_to("deep/second")
    return target


def recorded(tree: Path) -> list[str]:
    return [os.fsdecode(touch.path) for touch in carried.load(str(tree / NAME)).touches]


def test_first_opens_in_their_order(rig: Rig, tree: Path) -> None:
    started = rig.run("record", "start", tree)
    assert started.returncode == 0, started.stderr
    try:
        assert rig.run("record", "start", tree).returncode != 0
        # What lies beside the tree is not ours to tell.
        beside = tree.parent / f"{tree.name}-beside"
        beside.write_bytes(b"beside")
        for name in ("first", "link", "deep/er/third", "first", "empty", "deep/er/again", "deep/second"):
            read(tree / name)
        read(beside)
        beside.unlink()
        # A program that is executed is opened, too.
        (tree / "program").write_bytes(b"#!/bin/sh\n")
        (tree / "program").chmod(0o755)
    finally:
        stopped = rig.run("record", "stop", tree)
    assert stopped.returncode == 0, stopped.stderr
    names = ["first", "deep/second", "deep/er/third", "deep/er/again"]
    assert [name for name in recorded(tree) if name != "program"] == names
    shown = rig.run("record", "show", tree, "--json")
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [line["path"] for line in lines] == recorded(tree)
    times = [line["ms"] for line in lines]
    assert times == sorted(times)
    assert rig.run("record", "stop", tree).returncode == 19
    assert rig.processes() == []


def test_ranges_of_large_files(rig: Rig, tree: Path) -> None:
    """What was read of them, more or less, and nothing where all was read."""
    for name in ("big", "whole"):
        with (tree / name).open("wb") as file:
            file.write(os.urandom(32 * MIB))
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read_at = "fd = os.open(sys.argv[1], os.O_RDONLY)\nos.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)\nos.pread(fd, 10, {})"
    assert rig.run("record", "start", tree).returncode == 0
    try:
        for at in (20 * MIB + 5, 3 * MIB):
            python(read_at.format(at), tree / "big")
        read(tree / "whole")
        read(tree / "first")
    finally:
        assert rig.run("record", "stop", tree).returncode == 0
    ranges = {touch.path: touch.ranges for touch in carried.load(str(tree / NAME)).touches}
    assert ranges.keys() == {b"big", b"whole", b"first"}
    assert not ranges[b"whole"]
    assert not ranges[b"first"]
    for at in (20 * MIB + 5, 3 * MIB):
        assert [1 for offset, length in ranges[b"big"] if offset <= at < offset + length]
    assert sum(length for _, length in ranges[b"big"]) <= 4 * MIB


def test_in_the_foreground_until_a_signal(rig: Rig, tree: Path) -> None:
    with Task("env", *environment(rig), *rig.argv("record", "start", tree, "--foreground")) as recorder:
        assert recorder.line() == b"recording\n"
        read(tree / "unused")
        os.kill(recorder.pid, signal.SIGTERM)
        assert recorder.finish()[0] == 0
    assert recorded(tree) == ["unused"]


def environment(rig: Rig) -> list[str]:
    return [f"{name}={rig.env[name]}" for name in ("ACTIVE_RESTORE_STATE", "ACTIVE_RESTORE_RUN", "PYTHONPATH")]


def test_a_backup_carries_it(rig: Rig, ext4_target: Path) -> None:
    for name in ("one", "two"):
        (rig.tree / name).write_bytes(name.encode())
    rig.run("record", "start", rig.tree)
    read(rig.tree / "two")
    assert rig.run("record", "stop", rig.tree).returncode == 0
    command = rig.start("restore", rig.source, ext4_target)
    assert command.end()[0] == 0
    assert recorded(ext4_target) == ["two"]


def test_a_killed_recorder_is_no_obstacle(rig: Rig, tree: Path) -> None:
    rig.run("record", "start", tree)
    rig.kill("record")
    assert rig.run("record", "stop", tree).returncode == 19
    assert rig.run("record", "start", tree).returncode == 0
    read(tree / "first")
    assert rig.run("record", "stop", tree).returncode == 0
    wait_until(lambda: not rig.processes(), "it has ended")
    assert recorded(tree) == ["first"]


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/ssh.service\n", "ssh.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", "session-1.scope"),
        ("0::/system.slice/system-postgresql.slice/postgresql@15-main.service/extra\n", "postgresql@15-main.service"),
        ("9:name=systemd:/system.slice/cron.service\n4:memory:/x\n0::/\n", "cron.service"),
        ("0::/docker/abc\n", "docker/abc"),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_units(cgroups: str, unit: str) -> None:
    assert unit_of(cgroups) == unit
