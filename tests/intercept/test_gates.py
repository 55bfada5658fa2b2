"""Bits of inodes in a real map of the kernel, against a model; rows in their file."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from active_restore.ebpf import abi
from active_restore.ebpf.maps import Map, bpf
from active_restore.errors import CapabilityMissing
from active_restore.intercept import gates as gates_module
from active_restore.intercept.gates import Gates, Rows
from active_restore.model import Gate, Intent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CREATE, _HASH, _NO_PREALLOC = 0, 1, 1
_LAYOUT = abi.load().structs["gate_word"]
_CROWDED = st.lists(st.integers(2**40, 2**40 + 127), min_size=17, max_size=90)
_INODES = st.integers(1, 500) | st.integers(2**40, 2**40 + 200) | st.just(2**64 - 1)


def _map(entries: int) -> Map:
    return Map(bpf(_CREATE, struct.pack("=6I", _HASH, 8, _LAYOUT.packed.size, entries, _NO_PREALLOC, 0), "gate"), "gate")


@pytest.fixture
def gate() -> Iterator[Map]:
    """An empty map."""
    made = _map(1024)
    yield made
    made.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(["close", "open"]), st.lists(_INODES, max_size=20) | _CROWDED)
        | st.tuples(st.sampled_from(list(Gate)), _INODES),
        max_size=30,
    ),
)
def test_as_a_model_says(gate: Map, is_new: bool, steps: list[tuple[str | Gate, list[int] | int]]) -> None:
    for key, _ in list(gate.items()):
        gate.remove(key)
    gates, readers, writers = Gates(gate, _LAYOUT, empty=is_new), set[int](), set[int]()
    for what, whom in steps:
        if isinstance(whom, list) and what == "open":
            gates.open_all(np.array(whom, np.uint64))
            readers -= set(whom)
            writers -= set(whom)
        elif isinstance(whom, list):
            gates.close_all(np.array(whom, np.uint64))
            readers |= set(whom)
            writers |= set(whom)
        elif isinstance(what, Gate):
            gates.open(whom, what)
            readers.discard(whom)
            if what is Gate.ALL:
                writers.discard(whom)
    for inode in readers | writers | {1, 2, 3, 64, 128}:
        assert gates.is_closed(inode, Intent.READ) == (inode in readers)
        assert gates.is_closed(inode, Intent.WRITE) == (inode in writers)
    # A word without a bit costs nothing.
    assert {struct.unpack("=Q", key)[0] for key, _ in gate.items()} == {inode // 64 for inode in writers}


def test_what_another_agent_has_closed_stays_closed() -> None:
    left = _map(1024)
    Gates(left, _LAYOUT, empty=True).close_all(np.array([64, 70], np.uint64))
    gates = Gates(left, _LAYOUT)
    gates.close_all(np.array([65, 1 << 30], np.uint64))
    assert all(gates.is_closed(inode, Intent.READ) for inode in (64, 65, 70, 1 << 30))
    left.close()


def test_more_than_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word whose inodes come in two portions has all of them."""
    monkeypatch.setattr(gates_module, "_AT_ONCE", 100)
    large = _map(1024)
    gates = Gates(large, _LAYOUT, empty=True)
    gates.close_all(np.arange(10, 3000, dtype=np.uint64))
    assert [inode for inode in range(3100) if gates.is_closed(inode, Intent.READ)] == list(range(10, 3000))
    large.close()


def test_no_room_is_one_line() -> None:
    small = _map(4)
    with pytest.raises(CapabilityMissing, match="cannot guard that many"):
        Gates(small, _LAYOUT).close_all(np.arange(0, 6400, 64, dtype=np.uint64))
    small.close()


@given(st.dictionaries(st.integers(0, 300) | st.integers(10**6, 10**6 + 50), st.integers(1, 2**64 - 1), max_size=60))
def test_rows(tmp_path_factory: pytest.TempPathFactory, pairs: dict[int, int]) -> None:
    path: Path = tmp_path_factory.mktemp("rows") / "rows"
    rows = Rows(str(path))
    assert sorted(rows.add(iter(pairs.items())).tolist()) == sorted(pairs.values())
    rows.close()
    again = Rows(str(path))
    for row in range(310):
        assert again.inode(row) == pairs.get(row)
    assert all(again.inode(row) == inode for row, inode in pairs.items())
    assert again.inodes(range(310)).tolist() == [pairs[row] for row in range(310) if row in pairs]
    again.close()
