"""A recorded order: survives its file, is found in the snapshot, and goes before everything else."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_restore.predict import order
from active_restore.predict.order import Order, Touch
from tests.kernel.rig import MIB, marked
from tests.kernel.tasks import read
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

NAME = os.fsdecode(order.FILE_NAME)
PATHS = st.lists(st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & set(b"/\0")), min_size=1, max_size=4)
RANGES = st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)), max_size=3).map(tuple)
TOUCHES = st.lists(
    st.builds(Touch, PATHS.map(b"/".join), st.text(max_size=20), st.integers(0, 2**40), st.just(()) | RANGES), max_size=50
)


@given(st.integers(0, 2**40), TOUCHES)
def test_what_is_written_is_read(begun_s: int, touches: list[Touch]) -> None:
    recorded = Order(begun_s, tuple(touches))
    assert order.decode(order.encode(recorded)) == recorded


def test_formats() -> None:
    """What older agents wrote is read, and what they can read is written where there is nothing more to say."""
    old = msgspec.msgpack.encode([1, 7, ["", "a.service"], [b"deep/er"], [[0, b"one", 1, 30]]])
    touch = Touch(b"deep/er/one", "a.service", 30)
    assert order.decode(old) == Order(7, (touch,))
    assert msgspec.msgpack.decode(order.encode(Order(7, (touch,))))[0] == 1
    assert msgspec.msgpack.decode(order.encode(Order(7, (touch._replace(ranges=((1, 2),)),))))[0] == 2
    with pytest.raises(ValueError, match="format 3 is not known"):
        order.decode(old[:1] + b"\x03" + old[2:])


@given(TOUCHES, st.data())
def test_damage_is_told(touches: list[Touch], data: st.DataObject) -> None:
    content = bytearray(order.encode(Order(0, tuple(touches))))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    try:
        decoded = order.decode(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except ValueError:
        return
    assert all(b"\0" not in touch.path for touch in decoded.touches)


def record(*paths: str) -> bytes:
    return order.encode(Order(1, tuple(Touch(path.encode(), "some.service", 10 * at) for at, path in enumerate(paths))))


@pytest.fixture
def ordered_rig(rig: Rig) -> Rig:
    """Decoys come first in the order of the source, and take minutes."""
    for number in range(4):
        (rig.tree / f"decoy{number}").write_bytes(os.urandom(17 * MIB))
    (rig.tree / "deep").mkdir()
    for name in ("deep/one", "two", "three", "never"):
        (rig.tree / name).write_bytes(name.encode() * 100)
    return rig


SLOW = ("--limit", "200kB/s")


def test_the_snapshot_brings_its_order(ordered_rig: Rig, target: Path) -> None:
    (ordered_rig.tree / NAME).write_bytes(record("two", "deep/one", "gone", "../outside", "deep"))
    command = ordered_rig.restore(target, *SLOW)
    wait_until(lambda: not marked(target / "two") and not marked(target / "deep/one"), "what was recorded is there")
    assert marked(target / "decoy0")
    assert marked(target / "three")
    assert marked(target / "never")
    read(target / "two")
    with ordered_rig.control(target) as client:
        status = client.status()
    assert status.lanes["demand"].files == 0
    assert (status.lanes["predicted"].files, status.predictions["order"].made) == (2, 2)
    ordered_rig.finish(command, target)
    ordered_rig.verify(target)


def test_a_program_that_starts_when_all_is_ready_waits_for_nothing(ordered_rig: Rig, target: Path) -> None:
    """The first files come before that; within a limit, what it gives in that time."""
    (ordered_rig.tree / NAME).write_bytes(record("two", "decoy1", "deep/one"))
    command = ordered_rig.restore(target, *SLOW, "--head-start", "60")
    read(target / "two")
    with ordered_rig.control(target) as client:
        status = client.status()
    assert (status.faults, status.lanes["predicted"].files) == (0, 1)
    # What did not fit goes before the rest, and before what lies behind it in the order.
    wait_until(lambda: ordered_rig.processes("predict.process"), "the order is followed")
    assert marked(target / "decoy0")
    ordered_rig.finish(command, target)
    ordered_rig.verify(target)


def test_an_interruption_of_the_head_start_loses_nothing(ordered_rig: Rig, ext4_target: Path) -> None:
    (ordered_rig.tree / NAME).write_bytes(record("two", "decoy1", "decoy2", "decoy3", "deep/one"))
    argv = ("restore", ordered_rig.source, ext4_target, "--head-start", "60")
    command = ordered_rig.start(*argv)
    command.until("planned")
    command.signal(signal.SIGINT)
    assert command.end()[0] in (0, 130)
    if command.end()[0] == 130:
        assert ordered_rig.run("resume", ext4_target).returncode == 0
    ordered_rig.verify(ext4_target)


def test_another_order_can_be_named(ordered_rig: Rig, ext4_target: Path) -> None:
    (ordered_rig.tree / NAME).write_bytes(record("two"))
    other = ordered_rig.place / "other"
    other.write_bytes(record("three"))
    command = ordered_rig.restore(ext4_target, *SLOW, "--order", str(other))
    wait_until(lambda: not marked(ext4_target / "three"), "what was named is there")
    assert marked(ext4_target / "two")
    ordered_rig.finish(command, ext4_target)
    ordered_rig.verify(ext4_target)


def test_a_damaged_order_is_told_and_stops_nothing(rig: Rig, ext4_target: Path) -> None:
    (rig.tree / NAME).write_bytes(b"no order at all")
    command = rig.start("restore", rig.source, ext4_target)
    assert "no recorded order is followed" in command.until("notice")["text"]
    assert command.end()[0] == 0
    rig.verify(ext4_target)


def test_an_order_that_is_none_is_refused_at_once(rig: Rig, ext4_target: Path) -> None:
    (rig.place / "none").write_bytes(b"")
    done = rig.run("restore", rig.source, ext4_target, "--order", rig.place / "none")
    assert done.returncode == 2
    assert "no recorded order" in done.stderr
    assert not ext4_target.exists()
