"""What is seen of the real machine: disks below a path, use, stalls, and requests of others, told from ours."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf.blocks import SLOTS, BlockWatch, slot_start_us
from active_restore.linux import bpffs, disks, pressure
from active_restore.restore.board import Board
from active_restore.restore.limits import Limits
from active_restore.restore.pace import Bucket, has_turn
from active_restore.restore.throttle.counts import DiskCounts
from active_restore.restore.throttle.sensor import Sensor
from active_restore.restore.throttle.ticker import Counters, Ticker
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.disks import Disk

_READS = """
import mmap, os, sys
buffer = mmap.mmap(-1, 4096)
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
for at in range(int(sys.argv[2])):
    os.preadv(fd, [buffer], at * 4096)
"""
_SIZE = 4 << 20
_LOOP_MAJOR = 7


@pytest.fixture
def file(ext4: Disk) -> Iterator[Path]:
    """On a loop device, with nothing of it in memory."""
    path = ext4.mount / "sensed"
    path.write_bytes(os.urandom(_SIZE))
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    yield path
    path.unlink()


def read_as_another(path: Path, count: int) -> None:
    subprocess.run([sys.executable, "-c", _READS, path, str(count)], check=True)


def read_ourselves(path: Path, count: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        for at in range(count):
            os.preadv(fd, [mmap.mmap(-1, 4096)], at * 4096)
    finally:
        os.close(fd)


def loop_of(path: Path) -> set[disks.Disk]:
    return {disk for disk in disks.disks_below(str(path)) if disk.major == os.major(path.stat().st_dev)}


def test_a_loop_device_lies_on_a_disk(file: Path) -> None:
    assert loop_of(file)
    assert len(disks.disks_below(str(file))) >= 2


@pytest.mark.parametrize("path", ["/proc", "/nowhere"])
def test_what_lies_on_no_disk(path: str) -> None:
    assert disks.disks_below(path) == set()


def test_every_file_system_lies_on_its_loop_device(disk: Disk) -> None:
    """Also those with device numbers of their own (btrfs)."""
    assert [found for found in disks.disks_below(str(disk.mount)) if found.major == _LOOP_MAJOR]


def test_counts_tell_who_reads(file: Path) -> None:
    counts = DiskCounts(list(loop_of(file)))
    own = pressure.use_of(os.getpid())
    read_ourselves(file, 100)
    used = pressure.use_of(os.getpid())
    ours = counts.look(pressure.Use(0.0, used.read_bytes - own.read_bytes), 0.2)
    assert used.read_bytes - own.read_bytes >= 100 * 4096
    assert ours.requests <= 5
    read_as_another(file, 200)
    others = counts.look(pressure.Use(0.0, 0), 0.2)
    assert others.requests >= 200
    assert others.latency_us > 0 or others.requests
    assert counts.suspicious


def test_block_programs_tell_who_reads(file: Path, tmp_path: Path) -> None:
    sensor = Sensor(loop_of(file), list)
    sensor.watch(BlockWatch("test"))
    try:
        sensor.look(0, 0, 0)
        read_ourselves(file, 300)
        assert sensor.look(0, 0, 0).requests <= 10
        read_as_another(file, 300)
        load = sensor.look(10, 2, 1)
        assert load.requests >= 300
        assert load.latency_us > 0
        assert load.tail_us > 0
        assert (load.moved_bytes, load.demand) == (10, 3)
        assert sensor.by == "bpf"
    finally:
        sensor.close()
    assert not list(bpffs.ROOT.glob("active_restore/block_test*"))


def test_others_who_meet_us_are_counted(file: Path, tmp_path: Path) -> None:
    sensor = Sensor(loop_of(file), list)
    sensor.watch(BlockWatch("test"))
    over = threading.Event()

    def read_on() -> None:
        while not over.is_set():
            read_ourselves(file, 50)

    def meet() -> int:
        read_as_another(file, 300)
        load = sensor.look(0, 0, 0)
        assert load.met <= load.requests
        return load.met

    ours = threading.Thread(target=read_on)
    try:
        ours.start()
        sensor.look(0, 0, 0)
        # One of us may not get a processor meanwhile.
        wait_until(meet, "they meet")
    finally:
        over.set()
        ours.join()
        sensor.close()


def test_what_a_killed_agent_left_is_swept(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = bpffs.mount() / "active_restore" / f"block_throttle_{ended.pid}"
    left.mkdir(parents=True)
    BlockWatch("test").close()
    assert not left.exists()


def test_workers_are_ours(file: Path, tmp_path: Path) -> None:
    code = f"import sys\nsys.stdin.readline()\n{_READS}\nprint('read', flush=True)\nsys.stdin.read()"
    worker = subprocess.Popen(
        [sys.executable, "-c", code, file, "300"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    sensor = Sensor(loop_of(file), lambda: [worker.pid])
    try:
        sensor.watch(BlockWatch("test"))
        sensor.look(0, 0, 0)
        worker.stdin.write("go\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "read\n"
        assert sensor.look(0, 0, 0).requests <= 10
    finally:
        sensor.close()
        worker.communicate()


def test_processors_of_others(tmp_path: Path) -> None:
    sensor = Sensor([], list)
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        wait_until(lambda: sensor.look(0, 0, 0).cpu_stall > 0.2, "others wait for processors")
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def test_memory_and_ended_processes() -> None:
    assert 0 < pressure.free_share() < 1
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert pressure.use_of(ended.pid) == pressure.Use(0.0, 0)


def test_slots_follow_each_other() -> None:
    starts = [slot_start_us(slot) for slot in range(SLOTS)]
    assert starts[:10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert starts == sorted(set(starts))


def test_the_ticker_yields_and_comes_back(file: Path, tmp_path: Path) -> None:
    """Somebody reads the target's disk without a pause: the workers are told, and told again when it is over."""
    board = Board.create(1)
    board.workers = 2
    endless = _READS.replace("for at in range(int(sys.argv[2])):", "while True:").replace("at * 4096", "0")
    counters = Counters(list, lambda: 0, lambda: 0)
    with Ticker(board, [str(file)], counters, Limits(123), yields=True) as ticker:
        reader = subprocess.Popen([sys.executable, "-c", endless, file])
        try:
            wait_until(lambda: ticker.status().reason == "disk", "the background yields")
            wait_until(lambda: board.pace_bytes_per_s > 0, "the workers are told")
            wait_until(lambda: ticker.status().by == "bpf", "the block programs were loaded", 180)
        finally:
            reader.kill()
            reader.wait()
        wait_until(lambda: board.rate_bytes_per_s == 123, "the limit is kept")
    assert (board.pace_bytes_per_s, board.concurrency) == (0, 2)


def test_a_ticker_that_fails_sets_the_background_free(tmp_path: Path) -> None:
    def fail() -> int:
        raise OSError("no counter")

    board = Board.create(1)
    board.workers, board.pace_bytes_per_s, board.concurrency = 2, 1, 1
    with Ticker(board, [], Counters(list, fail, lambda: 0), Limits(7), yields=True) as ticker:
        wait_until(lambda: (board.pace_bytes_per_s, board.concurrency) == (0, 2), "the background is free")
        ticker.limits = Limits(8)
        wait_until(lambda: board.rate_bytes_per_s == 8, "the limit is still kept")


def test_without_manners_only_the_limit_is_kept() -> None:
    board = Board.create(1)
    with Ticker(board, [], Counters(list, lambda: 0, lambda: 0), Limits(5), yields=False) as ticker:
        wait_until(lambda: board.rate_bytes_per_s == 5, "the limit is kept")
        ticker.limits = Limits(6)
        wait_until(lambda: board.rate_bytes_per_s == 6, "the new limit is kept")


def test_a_bucket_in_debt_gives_nothing() -> None:
    bucket = Bucket()
    wait_until(lambda: bucket.ready(1000.0), "tokens come")
    bucket.spend(1 << 30)
    assert not bucket.ready(1000.0)


def test_workers_take_turns() -> None:
    """Of three, one at a time may work, and each comes round."""
    turns = [{number for number in range(3) if has_turn(number, 3, 1, 2.0 * turn)} for turn in range(6)]
    assert [len(able) for able in turns] == [1] * 6
    assert set().union(*turns) == {0, 1, 2}
    assert all(has_turn(number, 3, 3, 0.0) for number in range(3))
