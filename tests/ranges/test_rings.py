"""Accesses by aio and io_uring, of which it cannot always be told whether they write."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.rig import marked
from tests.kernel.tasks import Task, run
from tests.ranges.test_reading import OLD_NS, OPTIONS, SIZE, make, paused
from tests.restore.agents import kill

if TYPE_CHECKING:
    from tests.kernel.rig import Rig

_RINGS = Path(__file__).with_name("rings.py")
AT, LENGTH = 5_000_003, 300_000


def ring(way: str, what: str, path: Path) -> bytes:
    return run(sys.executable, "-S", "-E", str(_RINGS), way, what, path, str(AT), str(LENGTH))


# Name of the file: who does what, and whether the file is still half restored then.
WRITERS = {
    "aio": ("aio", "write", True),
    "io_uring": ("inline", "direct", True),
    "worker": ("worker", "write", True),
    "thread": ("sqpoll", "write", True),
    "hole": ("inline", "punch", False),
}


def test_writers_wait_for_their_range_or_for_all_where_they_may_do_more(rig: Rig, ext4_target: Path) -> None:
    models = {name: bytearray(make(rig.tree / "big" / name)) for name in WRITERS}
    command = rig.restore(ext4_target, *OPTIONS, "--limit", "1")
    paused(rig, ext4_target)
    for name, (way, what, half) in WRITERS.items():
        path = ext4_target / "big" / name
        start, end = (AT, AT + LENGTH) if what != "direct" else (AT - AT % 4096, AT + LENGTH + -(AT + LENGTH) % 4096)
        ring(way, what, path)
        models[name][start:end] = (bytes if what == "punch" else b"n".__mul__)(end - start)
        assert marked(path) == half, name
        with path.open("rb") as file:
            file.seek(start - 10)
            assert file.read(end - start + 20) == models[name][start - 10 : end + 10], name
    rig.finish(command, ext4_target)
    for name, model in models.items():
        assert (ext4_target / "big" / name).read_bytes() == model, name
        assert os.stat(ext4_target / "big" / name).st_mtime_ns != OLD_NS, name
    rig.assert_clean(ext4_target)


def test_who_only_reads_leaves_no_time(rig: Rig, ext4_target: Path) -> None:
    """Although the agent itself has the file open for writing again and again while they read."""
    content = make(rig.tree / "big" / "file", 4 * SIZE)
    command = rig.restore(ext4_target, *OPTIONS, "--limit", "8MiB/s")
    for way in ("aio", "inline", "worker", "sqpoll"):
        assert ring(way, "read", ext4_target / "big" / "file") == content[AT : AT + LENGTH]
    rig.finish(command, ext4_target)
    rig.verify(ext4_target)


def test_dead_keeper_does_not_make_readers_wait_for_all(rig: Rig, ext4_target: Path) -> None:
    """The standby and the next agent know which range was wanted."""
    content = make(rig.tree / "big" / "file", 4 * SIZE)
    command = rig.restore(ext4_target, *OPTIONS, "--limit", "1")
    paused(rig, ext4_target)
    kill(command)
    with Task.python(
        "print(os.pread(os.open(sys.argv[1], 0), 3, int(sys.argv[2])))", ext4_target / "big" / "file", "45000000"
    ) as task:
        task.held()
        rig.kill("ar-keeper")
        command = rig.resume(ext4_target)
        paused(rig, ext4_target)
        assert task.output().strip() == repr(content[45_000_000:45_000_003]).encode()
    assert marked(ext4_target / "big" / "file")
    with rig.control(ext4_target) as client:
        assert client.status().ranges.bytes_present < 2 * SIZE
    rig.finish(command, ext4_target)
    rig.verify(ext4_target)
