"""Plan: the walk of a snapshot becomes rows of the catalog; nothing is touched yet.

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

    from active_restore.catalog import Catalog
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


def plan(catalog: Catalog, nodes: Iterable[Node | Problem], keeps: Callable[[Node], bool]) -> Counts:
    """Fill the catalog; what it ``keeps`` is only remembered."""
    counts = Counts()
    catalog.plan(_counted(nodes, keeps, counts))
    return counts


def _counted(
    nodes: Iterable[Node | Problem], keeps: Callable[[Node], bool], counts: Counts
) -> Iterator[tuple[Node, bool] | Problem]:
    linked: set[tuple[int, int]] = set()
    for node in nodes:
        if isinstance(node, Problem):
            yield node
            continue
        if counts.entries >= _MAX_ROWS:
            yield Problem(node.path, errno.EFBIG, "the snapshot has more entries than can be counted")
            return
        kept = keeps(node)
        counts.entries += 1
        if node.kind is Kind.FILE and node.size and not kept and node.link_key not in linked:
            counts.files += 1
            counts.bytes += node.size
            counts.room_bytes += node.size - node.holes
            if node.link_key is not None:
                linked.add(node.link_key)
        yield node, kept
