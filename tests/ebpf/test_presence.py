"""The kernel side reads the memory of ``presence.Presence`` as the agent does; also for files of many gigabytes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import abi, maps, program
from active_restore.ebpf.program import Loading
from active_restore.intercept.bpf_ranges import RangedInodes
from active_restore.linux import bpffs
from active_restore.presence import Presence

if TYPE_CHECKING:
    from collections.abc import Iterator

_QUESTION = struct.Struct("=QQQQ")
_GROUP, _MOST_PAGES = 256, 0x7FFFF
SIZES = {"small": 5 * 4096, "one group": 256 * 4096, "odd": 300_000_001, "large": 20 << 30}


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program that answers questions, loaded and pinned."""
    sources = tmp_path / "bpf"
    shutil.copytree(abi.source_dir(), sources)
    shutil.copy(Path(__file__).with_name("asked.bpf.c"), sources)
    monkeypatch.setattr(abi, "source_dir", lambda: sources)
    place = bpffs.mount() / "active_restore_test" / f"presence{os.getpid()}"
    try:
        program.load("asked", place, Loading(numbers={"LOADED_WATCHER": os.getpid()}))
        yield place
    finally:
        program.unpin(place)
        with contextlib.suppress(OSError):
            place.parent.rmdir()


def _spans(pages: int, dice: random.Random) -> Iterator[tuple[int, int]]:
    """What one call may want: short and long, also from group to group."""
    for _ in range(60):
        length = dice.choice((1, 2, 63, 64, 65, 255, 256, 257, 2000, _MOST_PAGES))
        first = dice.randrange(pages) // dice.choice((1, _GROUP)) * dice.choice((1, _GROUP)) % pages
        yield first, min(first + length, pages)


def test_kernel_and_agent_agree(pins: Path) -> None:
    ranged, questions = RangedInodes.pinned(pins), maps.Map.pinned(pins / "map_questions")
    dice = random.Random(5)
    for inode, size in enumerate(SIZES.values(), 1 << 33):
        held = ranged.hold(inode, size)
        assert held is not None
        memory, is_new = held
        assert is_new
        presence = Presence(memory, size)
        asked = {True: 0, False: 0}
        for _ in range(6):
            for first, last in _spans(presence.pages, dice):
                questions.put(bytes(4), _QUESTION.pack(inode, first, last, 0))
                os.getppid()
                answer = _QUESTION.unpack(questions.get(bytes(4)) or b"")[3] - 1
                assert answer == presence.covers(first, last), (size, first, last)
                asked[bool(answer)] += 1
            for first, last in _spans(presence.pages, dice):
                presence.add(first, last)
        presence.add(0, presence.pages)
        assert asked[False]
        # The next agent finds it again, until there is doubt, and then nothing is believed.
        again = RangedInodes.pinned(pins)
        assert again.hold(inode, size) == (memory, False)
        again.doubt([inode])
        assert again.hold(inode, size) == (memoryview(bytearray(memory)), True)
        assert not presence.covers(0, 1)
        ranged.drop([inode])
        again.close()
    ranged.close()
    questions.close()
