"""Telling the kernel side of BPF which inodes are placeholders: a real map of this kernel, without programs."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from active_restore.ebpf import abi, maps
from active_restore.intercept.gates import Gates, gate_words
from bench.row import Goal, row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Rig
    from bench.row import Row

_MAP_CREATE, _HASH, _NO_PREALLOC = 0, 1, 1
_SECONDS_GOAL, _BYTES_GOAL = Goal("ours", "<=", 2.0), Goal("ours", "<=", 3.0)
# As an array of bits without gaps would need.
_BITS_BYTES = 1 / 8


def measure(rig: Rig) -> Iterator[Row]:
    """As many as blobs, and ten times that."""
    yield from measured(rig.scale.blobs, rig.scale.rounds)


def measured(few: int, rounds: int) -> Iterator[Row]:
    """Dense inode numbers, as a file system gives them to a whole restore; ``few`` of them, and ten times as many."""
    for count in (few, 10 * few):
        seconds: list[float] = []
        sizes: list[float] = []
        for _ in range(rounds):
            gate = _gate(count)
            before = _memory(gate)
            started = time.monotonic()
            Gates(gate, abi.load().structs["gate_word"], empty=True).close_all(np.arange(100, 100 + count, dtype=np.uint64))
            seconds.append(time.monotonic() - started)
            assert _memory(gate) > before
            sizes.append(_memory(gate) / count)
            gate.close()
        name = f"{count:,} placeholders in BPF"
        per_million = [took * 1e6 / count for took in seconds]
        yield row(f"{name}, registration", "s", seconds, ("a million", per_million), _SECONDS_GOAL)
        yield row(f"{name}, kernel memory each", "B", sizes, ("a bit each", [_BITS_BYTES]), _BYTES_GOAL)


def _gate(count: int) -> maps.Map:
    layout = abi.load().structs["gate_word"].packed
    attributes = struct.pack("=5I", _HASH, 8, layout.size, gate_words(count), _NO_PREALLOC)
    return maps.Map(maps.bpf(_MAP_CREATE, attributes, "gate"), "gate")


def _memory(gate: maps.Map) -> int:
    """What the kernel says that the map takes (exactly so since 6.4)."""
    lines = Path(f"/proc/self/fdinfo/{gate.fd}").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("memlock:")))
