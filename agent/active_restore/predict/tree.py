"""The target as the predictor sees it: paths as a task with the target as its root would resolve them, nothing waited for.

Everything goes by the interceptor's passage; only files whose content is complete are ever read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from functools import cached_property
from itertools import islice
from typing import IO, TYPE_CHECKING

from active_restore.catalog import State
from active_restore.linux.files import open_in_root
from active_restore.marker import marker_row
from active_restore.placeholder import read_marker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from active_restore.restore.board import Board

_MAX_ENTRIES = 4096


class Look:
    """One regular file. What is asked of it is looked up then: of most files that is not much."""

    def __init__(self, tree: Tree, inode: int, status: os.stat_result) -> None:
        self._tree = tree
        self._inode = inode
        self.size = status.st_size
        self.executable = bool(status.st_mode & 0o111)

    @cached_property
    def path(self) -> bytes:
        """Its real one, with ``/``."""
        return os.fsencode(os.readlink(f"/proc/self/fd/{self._inode}"))

    @cached_property
    def row(self) -> int:
        """Its catalog row; -1 where it is no placeholder."""
        return self._tree.row_of(self._inode)

    @property
    def missing(self) -> bool:
        """Whether its content is not there yet."""
        return self.row >= 0 and self._tree.board.state[self.row] not in (State.FILLED, State.SETTLED)

    def open(self) -> IO[bytes]:
        """The content; only where it is not ``missing``."""
        return open(f"/proc/self/fd/{self._inode}", "rb", opener=_quietly)


class Tree:
    """``root`` is the interceptor's passage, ``target`` where the rest of the machine sees that directory."""

    def __init__(self, root: int, target: bytes, board: Board, marker_prefix: bytes) -> None:
        self._root = root
        self._above = target.rstrip(b"/") + b"/"
        self._prefix = marker_prefix
        self.board = board

    def row_of(self, inode: int) -> int:
        """The row in the marker of this inode, or -1."""
        value = read_marker(f"/proc/self/fd/{inode}")
        if value is None or not value.startswith(self._prefix):
            return -1
        try:
            row = marker_row(self._prefix, value)
        except ValueError:
            return -1
        return row if row < self.board.rows else -1

    @contextlib.contextmanager
    def look(self, path: bytes) -> Iterator[Look | None]:
        """What an absolute path leads to: as the machine writes it, or as seen with the target as root; symlinks followed."""
        inode = self._open(path)
        if inode < 0:
            yield None
            return
        try:
            found = os.fstat(inode)
            yield Look(self, inode, found) if stat.S_ISREG(found.st_mode) else None
        finally:
            os.close(inode)

    def _open(self, path: bytes) -> int:
        inside = path.startswith(self._above)
        for candidate in (path[len(self._above) :] if inside else path, path) if inside else (path,):
            with contextlib.suppress(OSError):
                return open_in_root(self._root, candidate, os.O_PATH)
        return -1

    def names(self, directory: bytes) -> list[bytes]:
        """The names of files in a directory of the target, sorted; the first few thousand of them."""
        try:
            fd = open_in_root(self._root, directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return []
        try:
            with os.scandir(fd) as entries:
                names = [entry.name for entry in islice(entries, _MAX_ENTRIES) if entry.is_file(follow_symlinks=False)]
        finally:
            os.close(fd)
        return sorted(map(os.fsencode, names))


def _quietly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOATIME)
