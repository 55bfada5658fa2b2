"""From a snapshot to its nodes, folder by folder."""

from __future__ import annotations

import errno
from collections import OrderedDict
from typing import TYPE_CHECKING

from active_restore.errors import ContentError, RepositoryDamaged, SnapshotError
from active_restore.model import Kind, Node, Problem
from active_restore.source.restic import tree as trees
from active_restore.source.restic.blobs import BlobLoader
from active_restore.source.restic.indexing import MAX_BLOB_BYTES
from active_restore.store.base import ObjectNotFound, ObjectTruncated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from active_restore.source.restic.index import BlobIndex

# Trees shared by many folders can multiply without end ("billion laughs"): this many nodes are enough for anybody.
MAX_NODES = 100_000_000
_MAX_PENDING = 4_000_000
_WINDOW_BYTES = 4 << 20
_WINDOWS_KEPT = 8


class Walker:
    """Walks trees. Each folder's entries come together, then those of its subfolders.

    ``recover`` makes a better index when a blob is in none, or returns ``None``: an index file may have been lost.
    """

    def __init__(self, blobs: BlobLoader, recover: Callable[[], BlobIndex | None]) -> None:
        self._blobs = blobs
        self._recover = recover
        self._windows: OrderedDict[tuple[int, int], memoryview] = OrderedDict()

    def walk(self, root: Node, tree: bytes) -> Iterator[Node | Problem]:
        """``root`` and everything below ``tree``. Raises ``RepositoryDamaged`` where the root tree cannot be had."""
        try:
            text = self._load(tree)
        except ContentError as error:
            raise RepositoryDamaged(f"the root tree of the snapshot is damaged: {error}", "restic check") from error
        yield root
        left = MAX_NODES
        pending: list[trees.Folder] = []
        folder = trees.Folder(root, tree)
        while True:
            below: list[trees.Folder] = []
            try:
                for item in trees.nodes(text, folder.node.path):
                    left -= 1
                    yield self._emitted(item, below)
                    if left <= 0:
                        yield Problem(folder.node.path, errno.EBADMSG, "the snapshot has absurdly many nodes")
                        return
            except ContentError as error:
                yield Problem(folder.node.path, errno.EIO, f"damaged folder: {error}")
            if len(pending) + len(below) > _MAX_PENDING:
                yield Problem(folder.node.path, errno.EBADMSG, "absurdly many folders")
                below = []
            pending.extend(reversed(below))
            while pending:
                folder = pending.pop()
                try:
                    text = self._load(folder.subtree)
                    break
                except ContentError as error:
                    yield Problem(folder.node.path, errno.EIO, f"damaged folder: {error}")
            else:
                return

    def descend(self, tree: bytes, subfolder: bytes) -> tuple[Node, bytes]:
        """Node (with the path ``b""``) and tree of a subfolder. Raises ``SnapshotError``, ``RepositoryDamaged``."""
        names = [name for name in subfolder.split(b"/") if name not in (b"", b".")]
        node = None
        for depth, name in enumerate(names):
            folders: dict[bytes, trees.Folder] = {}
            try:
                for item in trees.nodes(self._load(tree), b""):
                    if isinstance(item, trees.Folder):
                        folders[item.node.path] = item
            except ContentError as error:
                raise RepositoryDamaged(f"a tree on the way to the subfolder is damaged: {error}") from error
            if name not in folders:
                missing = b"/".join(names[: depth + 1]).decode(errors="backslashreplace")
                there = ", ".join(sorted(one.decode(errors="backslashreplace") for one in list(folders)[:5]))
                raise SnapshotError(f"the snapshot has no folder /{missing}", f"there are: {there or 'no folders'}")
            node, tree = folders[name]
        if node is None:
            raise SnapshotError("an empty subfolder")
        return _renamed(node), tree

    def _emitted(self, item: Node | trees.Folder | Problem, below: list[trees.Folder]) -> Node | Problem:
        if isinstance(item, trees.Folder):
            below.append(item)
            return item.node
        if isinstance(item, Node) and item.kind is Kind.FILE and not self._fits(item):
            return Problem(item.path, errno.EBADMSG, "the blobs do not add up to the size of the file")
        return item

    def _fits(self, node: Node) -> bool:
        """Whether the blobs add up to the size. Blobs that are missing are found out, and reported, when they are read."""
        if len(node.content) == 32:
            row = self._blobs.index.find(node.content)
            if row < 0:
                row = self._known().find(node.content)
            return row < 0 or self._blobs.index.plain_size(row) == node.size
        rows = self._blobs.index.rows(node.content)
        if (rows < 0).any():
            rows = self._known().rows(node.content)
        return bool((rows < 0).any()) or self._blobs.index.plain_size_of_all(rows) == node.size

    def _known(self) -> BlobIndex:
        """The index, made better once if that is possible."""
        if (better := self._recover()) is not None:
            self._blobs = BlobLoader(self._blobs.store, better, self._blobs.box)
            self._windows.clear()
        return self._blobs.index

    def _load(self, tree: bytes) -> bytes:
        if self._blobs.index.find(tree) < 0:
            self._known()
        if self._blobs.store.remote and (text := self._near(tree)) is not None:
            return text
        return self._blobs.load(tree, MAX_BLOB_BYTES)

    def _near(self, tree: bytes) -> bytes | None:
        """A tree out of a larger window of its pack: trees of one backup lie together, and each request costs time.

        ``None`` where it is damaged, or lies on the border of two windows: then it is read alone.
        """
        row = self._blobs.index.find(tree)
        if row < 0:
            return None
        place = self._blobs.index.location(row)
        slot = place.offset // _WINDOW_BYTES
        try:
            window = self._window(place.pack, slot)
            start = place.offset - slot * _WINDOW_BYTES
            return self._blobs.box.blob(window[start : start + place.length], place.plain_length, tree)
        except (ContentError, ObjectNotFound, ObjectTruncated):
            return None

    def _window(self, pack: int, slot: int) -> memoryview:
        window = self._windows.get((pack, slot))
        if window is None:
            entries = self._blobs.index.entries
            mine = entries[entries[:, 0] == pack].astype("int64")
            start = slot * _WINDOW_BYTES
            end = min(int((mine[:, 1] + mine[:, 2]).max()), start + _WINDOW_BYTES)
            window = self._blobs.store.get_range(self._blobs.path(pack), start, end - start)
            self._windows[pack, slot] = window
            if len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return window


def _renamed(node: Node) -> Node:
    return Node(
        path=b"", kind=Kind.DIR, mode=node.mode, uid=node.uid, gid=node.gid, mtime_ns=node.mtime_ns,
        atime_ns=node.atime_ns, xattrs=node.xattrs,
    )  # fmt: skip
