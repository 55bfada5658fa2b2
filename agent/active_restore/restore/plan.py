"""Plan: the walk of a snapshot becomes numbered rows.

The same snapshot and the same options always give the same rows: that is what lets markers be read without our state.
"""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING

from active_restore.model import Kind, Node, Problem
from active_restore.restore.select import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from active_restore.config import RestoreOptions
    from active_restore.source.base import SnapshotInfo, Source

_MAX_ROWS = 2**32 - 2


def selected(source: Source, snapshot: SnapshotInfo, options: RestoreOptions) -> Iterator[Node | Problem]:
    """What the options want of a snapshot. Raises ``UsageError`` and what ``Source.walk`` raises."""
    selection = Selection(options.include, options.exclude)
    subfolder = options.subfolder.strip("/").encode("utf-8", "surrogateescape")
    return selection.filter(source.walk(snapshot, subfolder))


@dataclasses.dataclass(slots=True)
class Counts:
    """What a plan comes to: all entries, files with content to restore, their bytes, and the room that these take."""

    entries: int = 0
    files: int = 0
    bytes: int = 0
    room_bytes: int = 0


class Plan:
    """Numbers the entries of a walk and counts what they come to; what is ``kept`` is in the target already."""

    def __init__(self, keeps: Callable[[Node], bool]) -> None:
        self.counts = Counts()
        self._keeps = keeps
        self._linked: set[tuple[int, int]] = set()

    def number(self, items: Iterable[Node | Problem]) -> Iterator[tuple[int, Node, bool] | Problem]:
        """Yield ``(row, node, kept)``; problems have no row."""
        counts = self.counts
        for node in items:
            if isinstance(node, Problem):
                yield node
                continue
            if counts.entries >= _MAX_ROWS:
                yield Problem(node.path, errno.EFBIG, "the snapshot has more entries than can be counted")
                return
            row = counts.entries
            counts.entries += 1
            kept = self._keeps(node)
            if node.kind is Kind.FILE and node.size and not kept:
                self._count(node)
            yield row, node, kept

    def _count(self, node: Node) -> None:
        if node.link_key is not None:
            if node.link_key in self._linked:
                return
            self._linked.add(node.link_key)
        self.counts.files += 1
        self.counts.bytes += node.size
        self.counts.room_bytes += node.size - node.holes
