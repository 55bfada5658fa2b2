"""Manners of a whole restore: it yields while somebody reads the same disk, keeps its hours, and ends all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

_READ_FOR_EVER = """
import mmap, os, sys
buffer = mmap.mmap(-1, 4096)
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
while True:
    os.preadv(fd, [buffer], 0)
"""


def test_yields_to_a_reader_and_ends(rig: Rig, ext4_target: Path) -> None:
    for number in range(16):
        (rig.tree / f"file{number}").write_bytes(os.urandom(1 << 20))
    work = ext4_target.with_name(f"{ext4_target.name}-read-by-others")
    work.write_bytes(os.urandom(4096))
    reader = subprocess.Popen([sys.executable, "-c", _READ_FOR_EVER, work])
    try:
        command = rig.restore(ext4_target, "--throttle", "auto", "--limit", "200kB/s")
        with rig.control(ext4_target) as client:
            wait_until(lambda: client.status().throttle.reason == "disk", "it yields")
            assert 1 <= client.status().throttle.workers <= 2
            assert "others use the disk" in rig.run("status", ext4_target).stdout
            told = json.loads(rig.run("status", ext4_target, "--json").stdout)
            assert told["throttle"].keys() == {"reason", "rate_bytes_per_s", "workers", "by"}
        rig.hurry(ext4_target)
        # The reader is still there: the minimum is enough to end.
        code, errors = command.end()
        assert code == 0, errors
    finally:
        reader.kill()
        reader.wait()
        work.unlink()
    rig.verify(ext4_target)


@pytest.mark.parametrize(
    ("words", "limit", "said"),
    [
        (["5MB/s", "00:00-24:00,", "7MB/s"], 5_000_000, "limited to 4.76 MiB/s 00:00-24:00, else background limited to"),
        (["7MB/s"], 7_000_000, "background limited to 6.67 MiB/s"),
        (["0"], 0, "no limit"),
    ],
    ids=["hours", "rate", "none"],
)
def test_limits_of_a_running_restore(held_rig: Rig, ext4_target: Path, words: list[str], limit: int, said: str) -> None:
    (held_rig.tree / "file").write_bytes(b"content")
    command = held_rig.hold(ext4_target)
    with held_rig.control(ext4_target) as client:
        client.pause()
        ended = held_rig.run("limit", *words, ext4_target)
        assert (ended.returncode, said in ended.stdout) == (0, True), ended.stdout + ended.stderr
        wait_until(lambda: client.status().limit_bytes_per_s == limit, "the limit holds")
    held_rig.finish(command, ext4_target)


def test_what_was_asked_for_outlives_the_agent(held_rig: Rig, ext4_target: Path) -> None:
    """The service starts it again by itself; a user who does wants it to go on."""
    (held_rig.tree / "file").write_bytes(b"content")

    def asked_for() -> tuple[int, bool]:
        with held_rig.control(ext4_target) as client:
            status = client.status()
            return status.limit_bytes_per_s, status.paused

    command = held_rig.hold(ext4_target)
    with held_rig.control(ext4_target) as client:
        client.limit(2)
        client.pause()
    command.kill()
    command = held_rig.start("resume", "--supervised", ext4_target)
    command.until("ready")
    assert asked_for() == (2, True)
    command.kill()
    command = held_rig.resume(ext4_target)
    assert asked_for() == (2, False)
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


@pytest.mark.parametrize("words", [["5MB/s", "8-18"], ["quick"], ["5MB/s,"]], ids=" ".join)
def test_limits_that_are_none(rig: Rig, ext4_target: Path, words: list[str]) -> None:
    ended = rig.run("limit", *words, ext4_target)
    assert ended.returncode == 2, ended.stdout
    assert "hint: write it like" in ended.stderr


def test_hours_survive_the_agent(held_rig: Rig, ext4_target: Path) -> None:
    (held_rig.tree / "file").write_bytes(b"content")
    command = held_rig.restore(ext4_target, "--limit", "1 00:00-24:00, 50MB/s")
    os.kill(command.pid, signal.SIGTERM)
    command.end()
    again = held_rig.resume(ext4_target)
    with held_rig.control(ext4_target) as client:
        assert client.status().limit_bytes_per_s == 1
    held_rig.finish(again, ext4_target)
    held_rig.verify(ext4_target)
