"""Files by range, their accesses held by BPF: one restore with everything that tasks do to such files, and the exerciser."""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.rig import MIB, Rig, marked
from tests.kernel.tasks import Task, python, read, run
from tests.ranges import test_fsx as fsx
from tests.ranges import test_mappings as mappings
from tests.ranges.elsewhere import begin_elsewhere
from tests.ranges.maps import PAGE, START, WAYS
from tests.ranges.readers import READERS
from tests.vm.inside.territory import Child, state_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 3 * MIB + 1234
SPANS = ((SIZE // 2 - 3000, 100_000), (0, 10), (SIZE - 5000, 5000))
# Nobody tells BPF which range these want: the file is finished whole.
_WHOLE = ("aio", "io_uring", "worker of io_uring", "thread of io_uring")
_BY_RANGE = [how for how in READERS if how not in _WHOLE]
_MAPS = {f"map {how}": how for how in WAYS}
# The call cannot wait.
_NOW_OR_NEVER = ("in place", "moved")
_PATIENT = """
def again(read):
    while True:
        try:
            return read()
        except BlockingIOError:
            os.sched_yield()
"""
_RINGS = {"ring": "inline", "ring worker": "worker", "ring thread": "sqpoll", "ring writes": "inline"}
_OTHERS = (
    "strace",
    "handler",
    "blocked",
    "write",
    "append",
    "store",
    "truncate",
    "late",
    *_RINGS,
    "program",
    "handler later",
    "traced later",
    "window",
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    tree = tmp_path / "source"
    (tree / "big").mkdir(parents=True)
    rig = Rig(tmp_path, tree)
    yield rig
    left = rig.end()
    assert not left, f"processes were left: {left}"


def _make(tree: Path) -> dict[str, bytearray]:
    begin_elsewhere(tree)
    dice = random.Random(7)
    models = {how: bytearray(dice.randbytes(SIZE)) for how in (*_BY_RANGE, *_WHOLE, *_OTHERS, *_MAPS)}
    models["program"][:] = Path("/bin/true").read_bytes() + bytes(MIB)
    for how, content in models.items():
        (tree / "big" / how).write_bytes(content)
    (tree / "big" / "program").chmod(0o755)
    return models


def _readers(target: Path, models: dict[str, bytearray]) -> None:
    for how in (*_BY_RANGE, *_WHOLE):
        # A process takes seconds to start here.
        for start, length in SPANS if how in ("pread", "mmap") else SPANS[:1]:
            out = python(READERS[how], target / how, str(start), str(length))
            assert out.decode().strip() == hashlib.sha256(models[how][start : start + length]).hexdigest(), how
        assert marked(target / how) == (how not in _WHOLE), how


def _mappings(target: Path, models: dict[str, bytearray]) -> None:
    for name, how in _MAPS.items():
        mappings.assert_shown(mappings.shown(how, target / name), bytes(models[name]), how)
        if how in _NOW_OR_NEVER:
            until(lambda name=name: not marked(target / name), "the file is finished, as was asked")  # type: ignore[misc]
        else:
            assert marked(target / name)


def _odd_tasks(target: Path, models: dict[str, bytearray]) -> None:
    """Whom BPF cannot hold opens the whole file; who blocks SIGCONT, as threads of pools do, waits for its range."""
    assert run("strace", "-f", "-o", "/dev/null", "cat", target / "strace") == models["strace"]
    catches = "import signal\nsignal.signal(signal.SIGCONT, lambda *_: print('continued'))\n"
    blocks = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
    look = "print(os.pread(os.open(sys.argv[1], os.O_RDONLY), 3, 1_500_000).hex())"
    for name, first in (("handler", catches), ("blocked", blocks)):
        assert python(first + look, target / name).decode().strip() == models[name][1_500_000:1_500_003].hex(), name
    assert [name for name in ("strace", "handler", "blocked") if marked(target / name)] == ["blocked"]
    run(target / "program")
    assert not marked(target / "program")
    # Once it has the file open, its process is stopped.
    again = "fd = os.open(sys.argv[1], os.O_RDONLY)\nseen = []\n" + catches.replace("print('continued')", "seen.append(1)")
    again += "print(os.pread(fd, 3, 1_500_000).hex(), len(seen))"
    assert python(again, target / "handler later").decode().split() == [models["handler later"][1_500_000:1_500_003].hex(), "1"]
    wait = "fd = os.open(sys.argv[1], os.O_RDWR)\nprint(flush=True)\nsys.stdin.readline()\n"
    access = "print(os.pread(fd, 3, 1_500_000).hex(), os.pwrite(fd, b'x', 2_000_000))"
    with Task.python(wait + access, target / "traced later") as task:
        task.line()
        with Task("strace", "-o", "/dev/null", "-p", str(task.pid)) as tracer:
            until(lambda: "TracerPid:\t0" not in Path(f"/proc/{task.pid}/status").read_text(), "it is traced")
            task.say(b"\n")
            assert task.output().decode().split() == [models["traced later"][1_500_000:1_500_003].hex(), "1"]
            tracer.finish()
    models["traced later"][2_000_000:2_000_001] = b"x"
    assert all(marked(target / name) for name in ("handler later", "traced later"))


def _late_rings(target: Path, models: dict[str, bytearray]) -> None:
    """Who makes a ring after it has opened the file is told to try again until all of it is there, whoever reads."""
    before = READERS["io_uring"].partition("say(rings")[0]
    for name, way in _RINGS.items():
        code = f"{_PATIENT}{before}fd = os.open(p, os.O_RDWR)\nring = rings.Ring('{way}')\n"
        if name == "ring writes":
            code += "assert again(lambda: ring.write(fd, b'n' * length, start)) == length\n"
            models[name][1_000_000:1_005_000] = b"n" * 5000
        out = python(f"{code}say(again(lambda: ring.read(fd, length, start)))", target / name, "1000000", "5000")
        assert out.decode().strip() == hashlib.sha256(models[name][1_000_000:1_005_000]).hexdigest(), name
        until(lambda name=name: not marked(target / name), "it is finished, which is read once it is complete")  # type: ignore[misc]


def _writers(target: Path, models: dict[str, bytearray]) -> None:
    python("os.pwrite(os.open(sys.argv[1], os.O_WRONLY), b'mine', 1_000_001)", target / "write")
    models["write"][1_000_001:1_000_005] = b"mine"
    python("os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND), b'more')", target / "append")
    models["append"] += b"more"
    store = "import mmap\nm = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096, offset=2 << 20)\nm[5:9] = b'mine'"
    python(store, target / "store")
    models["store"][(2 << 20) + 5 : (2 << 20) + 9] = b"mine"
    python("fd = os.open(sys.argv[1], os.O_RDWR)\nos.ftruncate(fd, 5000)\nos.ftruncate(fd, 9000)", target / "truncate")
    models["truncate"][5000:] = bytes(4000)
    assert [name for name in ("write", "append", "store", "truncate") if marked(target / name)] == ["write", "append", "store"]


def test_from_beginning_to_end(rig: Rig, disk: Path) -> None:
    Path("/dev/shm").mkdir(exist_ok=True)
    models = _make(rig.tree)
    target = disk / "by range"
    command = rig.restore(target, "--ranges", "*", "--range-threshold", "1MiB", "--limit", "1")
    with rig.control(target) as client:
        client.pause()
        ranges = client.status().ranges
    assert (ranges.mechanism, ranges.files, ranges.windows) == ("BPF programs", len(models) + 1, True)
    big = target / "big"
    _readers(big, models)
    _mappings(big, models)
    _odd_tasks(big, models)
    _late_rings(big, models)
    _writers(big, models)
    growing = Task(sys.executable, "-S", "-E", str(mappings.MAPS), "private", big / "window", "wait")
    assert growing.line().decode().strip() == hashlib.sha256(models["window"][START:][:PAGE]).hexdigest(), growing.finish()
    command.kill()
    # What is there is read while nobody lives; who wants more is stopped, and served by the next agent.
    growing.say(b"\n")
    assert python("print(os.pread(os.open(sys.argv[1], 0), 4, 1_000_001))", big / "write") == b"b'mine'\n"
    late = Child(sys.executable, "-I", "-c", f"import os; print(os.pread(os.open('{big}/late', 0), 4, 2_000_000).hex())")
    until(lambda: state_of(late.pid) == "T", "stop, once the agent's heartbeat is old")
    command = rig.resume(target)
    with rig.control(target) as client:
        client.pause()
    with growing:
        mappings.assert_shown([growing.output().decode().split()], bytes(models["window"]), "private")
    assert marked(big / "window")
    assert late.finish().strip() == models["late"][2_000_000:2_000_004].hex()
    assert marked(big / "late")
    assert marked(big / "write")
    rig.finish(command, target)
    for name, content in models.items():
        assert read(big / name) == content, name
    rig.assert_clean(target)
    shutil.rmtree(target)


def test_random_operations(rig: Rig, disk: Path) -> None:
    """The exerciser of ``tests/ranges``, smaller: see there."""
    seed = fsx.new_seed()
    fsx.fill(rig.tree, random.Random(seed), small=True)
    target = disk / "exercised"
    command = rig.restore(target, *fsx.OPTIONS, "--limit", "64KiB/s")
    tasks = fsx.begin(rig, target, seed, fsx.OPERATIONS // 8)
    try:
        for task in tasks:
            assert task.line().startswith(b"done"), task.finish()
        with rig.control(target) as client:
            assert client.status().ranges.mechanism == "BPF programs"
        rig.finish(command, target)
        fsx.look_again(tasks)
    finally:
        fsx.stop(tasks)
    rig.assert_clean(target)
    shutil.rmtree(target)


def test_killed_at_random_points(rig: Rig, disk: Path) -> None:
    target = disk / "killed"
    assert fsx.exercise_under_kills(rig, target, fsx.new_seed(), fsx.OPERATIONS // 8, small=True) > 1
    shutil.rmtree(target)
