"""A program that runs is not written to: what a dead agent had let run is compared with the backup."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from active_restore.catalog import FileRow, State
from active_restore.linux.handles import HandleMaker
from active_restore.marker import MARKER, marker_prefix, marker_value
from active_restore.model import FileRef, Piece
from active_restore.restore.board import Board
from active_restore.restore.writer import Claim, Filling
from tests.kernel.disks import mounted
from tests.kernel.rig import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# 6.11 and 6.12 let everybody write to a program that runs.
pytestmark = pytest.mark.native
_PREFIX = marker_prefix("0" * 24)
_MTIME_NS = 1_500_000_000_000_000_007


@pytest.fixture(params=["ext4", "xfs"])
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A copy of cat that waits for its input; it has the marker of a placeholder."""
    with mounted(request.param, tmp_path / "disk", 512 * MIB) as disk:
        path = disk.mount / "cat"
        shutil.copy("/bin/cat", path)
        os.setxattr(path, MARKER, marker_value(_PREFIX, 0, HandleMaker().of_name(os.fsencode(path))))
        os.sync()
        with subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            running.stdin.write(b"runs\n")
            running.stdin.flush()
            assert running.stdout.readline() == b"runs\n"
            with pytest.raises(OSError, match="Text file busy"):
                path.open("r+b")
            yield path
            running.stdin.close()


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[tuple[Filling, Board]]:
    ref = FileRef(b"cat", path.stat().st_size, _MTIME_NS, b"")
    board = Board.create(1)
    mount = os.open(path.parent, os.O_RDONLY)
    filling = Filling(mount, FileRow(0, ref, HandleMaker().of_name(os.fsencode(path))), board, _PREFIX)
    try:
        assert filling.claim() is Claim.OURS
        yield filling, board
    finally:
        filling.close()
        os.close(mount)


def test_equal_content_is_filled(program: Path) -> None:
    content = program.read_bytes()
    with _claimed(program) as (filling, board):
        for offset in range(0, len(content), 10_000):
            filling.write(Piece(offset, content[offset : offset + 10_000]))
        filling.finish()
        assert board.state[0] == State.FILLED
        assert filling.written == len(content)
    assert program.read_bytes() == content


def test_other_content_waits_for_its_end(program: Path) -> None:
    content, before = program.read_bytes(), program.stat()
    with _claimed(program) as (filling, board):
        filling.write(Piece(0, content[:10_000]))
        with pytest.raises(OSError, match="Text file busy") as caught:
            filling.write(Piece(10_000, bytes(10_000)))
        assert caught.value.errno == errno.ETXTBSY
        filling.abort()
        assert board.state[0] == State.LAID
    after = program.stat()
    assert (after.st_mtime_ns, after.st_atime_ns, after.st_blocks) == (before.st_mtime_ns, before.st_atime_ns, before.st_blocks)
    assert program.read_bytes() == content
