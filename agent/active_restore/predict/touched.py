"""Which ranges of large files were touched first: what of them is in the page cache some time after they were opened.

Nobody is asked and nobody waits for it. Not given: what O_DIRECT reads; what was in the page cache before counts as touched,
and so does what the kernel has read ahead.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from active_restore.linux.cachestat import cached
from active_restore.marker import MARKER

if TYPE_CHECKING:
    from active_restore.predict.order import Stretch

# Smaller ones come as a whole anyway.
_LEAST_BYTES = 16 << 20
_MOST_FILES = 1000
_MOST_STRETCHES = 1024
_MOST_LOOKS = 20


class Touched:
    """Below one root. Each file is looked at a few times: what comes later is not what it needed first."""

    def __init__(self) -> None:
        self._files: dict[bytes, tuple[Stretch, ...]] = {}
        self._looks: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        return bool(self._looks)

    def note(self, path: bytes, size: int) -> None:
        """It was opened just now."""
        if size >= _LEAST_BYTES and len(self._files) < _MOST_FILES:
            self._files[path] = ()
            self._looks[path] = _MOST_LOOKS

    def look(self, root: int) -> dict[bytes, tuple[Stretch, ...]]:
        """The ranges of files of which more is known than before, in the order in which they were seen."""
        found = {}
        for path, left in list(self._looks.items()):
            known = self._files[path]
            # Deleted, replaced, or a kernel without cachestat(2).
            with contextlib.suppress(OSError):
                self._files[path] = _more(root, path, known)
            if known != self._files[path]:
                found[path] = self._files[path]
            self._looks[path] = left - 1
            if left <= 1:
                del self._looks[path], self._files[path]
        return found


def _more(root: int, path: bytes, known: tuple[Stretch, ...]) -> tuple[Stretch, ...]:
    if MARKER in os.listxattr(b"/proc/self/fd/%d/%s" % (root, path), follow_symlinks=False):
        # A placeholder: to open it would mean to wait for it.
        return known
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC, dir_fd=root)
    try:
        size = os.fstat(fd).st_size
        stretches = list(cached(fd, size))
    finally:
        os.close(fd)
    if sum(length for _, length in stretches) > size * 3 // 4:
        # As good as all of it: that is what a touch without ranges says.
        return ()
    for offset, length in stretches:
        known = (*known, *_less(offset, offset + length, known))
    return known[:_MOST_STRETCHES]


def _less(begin: int, end: int, known: tuple[Stretch, ...]) -> list[Stretch]:
    """What of these bytes is not known yet."""
    left = []
    for offset, length in sorted(known):
        if offset >= end:
            break
        if begin < offset:
            left.append((begin, offset - begin))
        begin = max(begin, offset + length)
    if begin < end:
        left.append((begin, end - begin))
    return left
