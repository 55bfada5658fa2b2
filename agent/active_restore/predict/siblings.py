"""Files that are used together lie together: after some faults in one directory its other small files follow.

As the kernel reads ahead in a file: the window doubles as long as faults go on, and begins where the last fault was.
"""

from __future__ import annotations

import bisect
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.predict.tree import Tree

SIBLING = "sibling"
# A package of Python is imported by several modules of one directory; two files together are no pattern yet.
_FAULTS = 3
_FIRST_WINDOW = 8
_LAST_WINDOW = 64
_MAX_FILE_BYTES = 256 << 10
_MAX_DIRECTORIES = 1024
_MAX_LOOKS = 128


class _Directory:
    """``names`` have not been looked at yet, ``None`` before there was reason to."""

    __slots__ = ("faults", "names", "window")

    def __init__(self) -> None:
        self.faults = 0
        self.window = _FIRST_WINDOW
        self.names: list[bytes] | None = None


class Siblings:
    """``predict(kind, row, size)`` is called for each file that is missing. Each file is looked at once."""

    def __init__(self, tree: Tree, predict: Callable[[str, int, int], None]) -> None:
        self._tree = tree
        self._predict = predict
        self._directories: OrderedDict[bytes, _Directory] = OrderedDict()

    def of(self, path: bytes) -> None:
        """A task wanted this file (absolute, as seen with the target as root) and had to wait."""
        folder, _, name = path.rpartition(b"/")
        directory = self._directories.setdefault(folder, _Directory())
        self._directories.move_to_end(folder)
        if len(self._directories) > _MAX_DIRECTORIES:
            self._directories.popitem(last=False)
        directory.faults += 1
        if directory.faults < _FAULTS:
            return
        if directory.names is None:
            directory.names = self._tree.names(folder or b"/")
        self._open_window(folder, name, directory.names, directory.window)
        directory.window = min(2 * directory.window, _LAST_WINDOW)

    def _open_window(self, folder: bytes, after: bytes, names: list[bytes], window: int) -> None:
        """The next ones in order; behind the last one it goes on with the first."""
        for _ in range(min(_MAX_LOOKS, len(names))):
            at = bisect.bisect_right(names, after)
            after = names.pop(at if at < len(names) else 0)
            with self._tree.look(os.path.join(folder, after)) as found:
                if found is not None and found.missing and found.size <= _MAX_FILE_BYTES:
                    self._predict(SIBLING, found.row, found.size)
                    window -= 1
                    if window <= 0:
                        return
