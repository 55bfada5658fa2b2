"""Many random operations on half-restored files, from several processes, against a model; also under SIGKILL of the agent."""

from __future__ import annotations

import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.rig import MIB
from tests.kernel.tasks import Task
from tests.source import repositories

if TYPE_CHECKING:
    from tests.kernel.disks import Disk
    from tests.kernel.rig import Rig

PROCESSES = 3
OPERATIONS = int(os.environ.get("ACTIVE_RESTORE_FSX", "24000"))
"""Of all processes, for each file system; with those of the other two tests 100,000."""
OPTIONS = ("--ranges", "*", "--range-threshold", "64KiB")
FSX = str(Path(__file__).with_name("fsx.py"))


def fill(tree: Path, dice: random.Random, *, small: bool = False) -> None:
    """``small``: for a machine whose processor is emulated."""

    def make(name: str, size: int) -> None:
        with open(tree / name, "wb") as file:
            while file.tell() < size:
                if dice.random() < 0.2:
                    file.seek(dice.randint(1, 300_000), os.SEEK_CUR)
                file.write(dice.randbytes(min(dice.randint(1, 900_000), size - file.tell())) if file.tell() < size else b"")
            file.truncate(size)

    make("shared", (6 if small else 48) * MIB + 77)
    for process in range(PROCESSES):
        for number in range(6 if small else 16):
            make(f"own-{process}-{number:02}", dice.randint(100_000, (1 if small else 3) * MIB))
    # Nobody touches it: the restore does not end before it is told to.
    make("rest", (16 if small else 64) * MIB)


def begin(rig: Rig, target: Path, seed: int, operations: int) -> list[Task]:
    each = str(operations // PROCESSES)
    words = [(str(seed), each, str(number), str(PROCESSES), rig.tree, target) for number in range(PROCESSES)]
    return [Task(sys.executable, "-S", "-E", FSX, *each_words) for each_words in words]


def stop(tasks: list[Task]) -> None:
    for task in tasks:
        task.__exit__(None, None, None)


def look_again(tasks: list[Task]) -> None:
    """Everything is restored: every byte is looked at once more."""
    for task in tasks:
        task.say(b"look again\n")
        code, out, err = task.finish()
        assert code == 0, out + err


def from_restic(rig: Rig) -> None:
    """Restore from a repository, whose blobs begin and end anywhere in a page."""
    repository = repositories.local(rig.place / "repository", 2)(rig.tree)
    rig.source = repository.spec
    rig.env.update(repository.env)


def new_seed() -> int:
    """Another one each time, or the one that is to be repeated."""
    return int(os.environ.get("ACTIVE_RESTORE_FSX_SEED", "0")) or random.randrange(1 << 30)


@pytest.fixture
def seed() -> int:
    return new_seed()


def test_killed_at_random_points(rig: Rig, ext4_target: Path, seed: int) -> None:
    assert exercise_under_kills(rig, ext4_target, seed, OPERATIONS * 2 // 3) > 1


def test_random_operations(rig: Rig, disk: Disk, target: Path, seed: int) -> None:
    fill(rig.tree, random.Random(seed))
    if disk.kind != "ext4":
        from_restic(rig)
    command = rig.restore(target, *OPTIONS, "--limit", "1MiB/s")
    tasks = begin(rig, target, seed, OPERATIONS)
    try:
        for task in tasks:
            assert task.line().startswith(b"done"), task.finish()
        rig.finish(command, target)
        look_again(tasks)
    finally:
        stop(tasks)
    rig.assert_clean(target)


def exercise_under_kills(rig: Rig, target: Path, seed: int, operations: int, *, small: bool = False) -> int:
    """The agent dies at random moments meanwhile; how often. ``small``: as in ``fill``."""
    dice = random.Random(seed)
    fill(rig.tree, dice, small=small)
    limit = (64 << 10) if small else 1 << 20
    command = rig.restore(target, *OPTIONS, "--limit", str(limit))
    tasks = begin(rig, target, seed, operations)
    kills = 0
    try:
        with ThreadPoolExecutor(PROCESSES) as waiting:
            lines = [waiting.submit(task.line) for task in tasks]
            while not all(line.done() for line in lines):
                # At a random moment, unless they are done before.
                wait(lines, dice.random() * (10 if small else 1))
                command.kill()
                kills += 1
                command = rig.resume(target)
                with rig.control(target) as client:
                    client.limit(limit)
        for task, line in zip(tasks, lines, strict=True):
            assert line.result().startswith(b"done"), task.finish()
        rig.finish(command, target)
        look_again(tasks)
    finally:
        stop(tasks)
    rig.assert_clean(target)
    return kills


def test_everything_dies(rig: Rig, disk: Disk, target: Path, seed: int) -> None:
    """Agent and keepers at once: what is there is read from the file system then, as after a reboot."""
    fill(rig.tree, random.Random(seed))
    if disk.kind != "xfs":
        from_restic(rig)
    command = rig.restore(target, *OPTIONS, "--limit", "1MiB/s")
    tasks = begin(rig, target, seed, OPERATIONS // 6)
    try:
        for task in tasks:
            assert task.line().startswith(b"done"), task.finish()
        for _ in range(2):
            command.kill()
            for name in ("ar-standby", "ar-keeper"):
                rig.kill(name)
            command = rig.resume(target)
        rig.finish(command, target)
        look_again(tasks)
    finally:
        stop(tasks)
    rig.assert_clean(target)
