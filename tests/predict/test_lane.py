"""Guesses during a real restore: what a program needs is there before it asks, counted and within limits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from active_restore.restore.progress import PredictionCount
from tests.kernel.rig import MIB, marked
from tests.kernel.tasks import python, read, run
from tests.kernel.waiting import wait_until
from tests.predict.programs import chain

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

# Slow enough to keep the background at its first files for minutes, fast enough for guesses of some KiB.
LIMIT = ("--limit", "200kB/s")
ORIGIN = "-Wl,-rpath,$ORIGIN"


@pytest.fixture
def slow_rig(rig: Rig) -> Rig:
    """A rig whose background has enough to do with files that nobody needs."""
    # As many as the workers take in hand at once, each a batch of its own; made first, so first in order.
    for number in range(4):
        (rig.tree / f"decoy{number}").write_bytes(os.urandom(17 * MIB))
    return rig


def counts(rig: Rig, target: Path, kind: str) -> PredictionCount:
    with rig.control(target) as client:
        return client.status().predictions.get(kind, PredictionCount())


def test_libraries_come_before_they_are_needed(slow_rig: Rig, target: Path) -> None:
    chain(slow_rig.place / "build", slow_rig.tree, ORIGIN)
    command = slow_rig.restore(target, *LIMIT)
    read(target / "program")
    wait_until(lambda: not marked(target / "libone.so") and not marked(target / "libtwo.so"), "the libraries are there")
    assert marked(target / "decoy0")
    assert run(target / "program") == b"two\n"
    wait_until(lambda: counts(slow_rig, target, "elf").hit == 2, "both were used")
    found = counts(slow_rig, target, "elf")
    assert (found.made, found.late, found.wasted) == (2, 0, 0)
    with slow_rig.control(target) as client:
        lanes = client.status().lanes
    assert (lanes["demand"].files, lanes["predicted"].files) == (1, 2)
    slow_rig.finish(command, target)
    slow_rig.verify(target)


def test_the_loader_and_its_cache_come_with_a_script_of_a_whole_system(slow_rig: Rig, target: Path) -> None:
    """Absolute names are those of the target, as a task sees them that has it as its root."""
    tree = slow_rig.tree
    for name in ("bin", "lib", "usr/lib/deep", "etc/ld.so.conf.d"):
        (tree / name).mkdir(parents=True)
    chain(slow_rig.place / "build", tree / "usr/lib/deep", "-Wl,--dynamic-linker=/lib/ld.so")
    (tree / "usr/lib/deep/program").rename(tree / "bin/program")
    (tree / "lib/ld.so").write_bytes(b"a loader")
    (tree / "bin/script").write_text("#!/bin/interpreter -x\n")
    (tree / "bin/script").chmod(0o755)
    (tree / "bin/interpreter").symlink_to("/bin/program")
    (tree / "etc/ld.so.conf").write_text("include ld.so.conf.d/*.conf\n")
    (tree / "etc/ld.so.conf.d/deep.conf").write_text("/usr/lib/deep # here\n")
    run("ldconfig", "-r", tree)
    command = slow_rig.restore(target, *LIMIT)
    # The cache comes first, and libraries are looked for in it as soon as it is there.
    read(target / "etc/ld.so.cache")
    read(target / "bin/script")
    needed = ("bin/program", "lib/ld.so", "usr/lib/deep/libone.so", "usr/lib/deep/libtwo.so")
    wait_until(lambda: not any(marked(target / name) for name in needed), "all that the script needs is there")
    assert marked(target / "decoy0")
    assert counts(slow_rig, target, "script").made == 1
    assert counts(slow_rig, target, "elf").made == 3
    slow_rig.finish(command, target)
    slow_rig.verify(target)


def test_siblings_come_after_some_faults_in_a_directory(slow_rig: Rig, target: Path) -> None:
    package = slow_rig.tree / "package"
    package.mkdir()
    for number in range(20):
        (package / f"module{number:02}.py").write_text(f"number = {number}\n" * 100)
    (package / "module05.big").write_bytes(os.urandom(2 * MIB))
    command = slow_rig.restore(target, *LIMIT)
    for number in (3, 4):
        read(target / f"package/module{number:02}.py")
    assert marked(target / "package/module06.py")
    read(target / "package/module05.py")
    follow = [target / f"package/module{number:02}.py" for number in range(6, 14)]
    wait_until(lambda: not any(map(marked, follow)), "the next ones are there")
    assert marked(target / "package/module05.big")
    assert marked(target / "package/module14.py")
    slow_rig.finish(command, target)
    slow_rig.verify(target)


def test_who_opens_a_file_again_has_not_waited_for_it(slow_rig: Rig, target: Path) -> None:
    """As a writer, before it is durable (or with an access that nobody could see through): that is no second fault."""
    package = slow_rig.tree / "package"
    package.mkdir()
    for number in range(40):
        (package / f"module{number:02}.py").write_text(f"number = {number}\n" * 100)
    command = slow_rig.restore(target, *LIMIT)
    for number in (3, 4):
        python("open(sys.argv[1]).read()\nos.open(sys.argv[1], os.O_RDWR)", target / f"package/module{number:02}.py")
    read(target / "package/module05.py")
    follow = [target / f"package/module{number:02}.py" for number in range(6, 14)]
    wait_until(lambda: not any(map(marked, follow)), "the next ones are there")
    assert marked(target / "package/module14.py")
    slow_rig.finish(command, target)
    slow_rig.verify(target)


def test_a_paused_restore_guesses_nothing(slow_rig: Rig, target: Path) -> None:
    chain(slow_rig.place / "build", slow_rig.tree, ORIGIN)
    command = slow_rig.restore(target, *LIMIT)
    with slow_rig.control(target) as client:
        client.pause()
    assert run(target / "program") == b"two\n"
    assert counts(slow_rig, target, "elf").made == 0
    slow_rig.finish(command, target)
    slow_rig.verify(target)


def test_a_dead_predictor_costs_nothing_but_guesses(slow_rig: Rig, target: Path) -> None:
    chain(slow_rig.place / "build", slow_rig.tree, ORIGIN)
    (slow_rig.tree / "other").write_text("other")
    command = slow_rig.restore(target, *LIMIT)
    read(target / "other")
    wait_until(lambda: slow_rig.processes("predict.process"), "it is there")
    slow_rig.kill("predict.process")
    read(target / "program")
    wait_until(lambda: not marked(target / "libtwo.so"), "another one guesses")
    slow_rig.finish(command, target)
    slow_rig.verify(target)
