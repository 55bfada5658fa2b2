"""Snapshots: listing and choosing them.

Source: restic ``doc/design.rst``, "Snapshots".
"""

from __future__ import annotations

import string
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from active_restore.errors import ContentError, RepositoryDamaged, SnapshotError
from active_restore.source.base import SnapshotInfo
from active_restore.source.restic import moments
from active_restore.store.base import ObjectNotFound, ObjectTruncated
from active_restore.store.several import get_several

if TYPE_CHECKING:
    from collections.abc import Iterable

    from active_restore.source.restic.seal import Box
    from active_restore.store.base import Store
    from active_restore.store.several import Outcome

_MAX_SNAPSHOT_BYTES = 64 << 20
_CANDIDATES = 5
_DAMAGE = (ContentError, ObjectNotFound, ObjectTruncated)


class _Stored(msgspec.Struct):
    time: str
    tree: str
    paths: list[str] | None = None
    hostname: str = ""
    tags: list[str] | None = None


class Snapshots:
    """The snapshots of a repository. What was read is kept: snapshots never change."""

    def __init__(self, store: Store, box: Box) -> None:
        self._store = store
        self._box = box
        self._trees: dict[str, bytes] = {}
        self._infos: dict[str, SnapshotInfo] = {}

    def all(self) -> list[SnapshotInfo]:
        """Every readable snapshot, oldest first."""
        return self._readable(self._names())[0]

    def select(self, name: str) -> SnapshotInfo:
        """See ``Source.select``. Raises ``RepositoryDamaged`` where a damaged snapshot could be the one that is meant."""
        names = self._names()
        if name == "latest":
            return self._latest(names)
        if not name or not set(name.lower()) <= set(string.hexdigits):
            raise SnapshotError(f"{name[:70]!r} is no snapshot id", self._hint(names))
        found = [one for one in names if one.startswith(name.lower())]
        if not found:
            raise SnapshotError(f"no snapshot begins with {name}", self._hint(names))
        if len(found) > 1:
            raise SnapshotError(f"{len(found)} snapshots begin with {name}", self._hint(found))
        try:
            return self._load(found[0])
        except _DAMAGE as error:
            raise RepositoryDamaged(f"snapshot {found[0][:8]} is damaged: {error}", self._hint(names)) from error

    def tree(self, snapshot: SnapshotInfo) -> bytes:
        """Id of the root tree of a snapshot."""
        if snapshot.id not in self._trees:
            self.select(snapshot.id)
        return self._trees[snapshot.id]

    def _latest(self, names: list[str]) -> SnapshotInfo:
        infos, damaged = self._readable(names)
        if damaged:
            # It could be the latest: to take an older one in silence would be worse than to stop.
            raise RepositoryDamaged(f"snapshot {damaged[0][:8]} is damaged", f"name one by its id: {_listed(infos)}")
        if not infos:
            raise SnapshotError(f"{self._store.url} holds no snapshot", "make one with restic backup")
        return infos[-1]

    def _readable(self, names: list[str]) -> tuple[list[SnapshotInfo], list[str]]:
        damaged = []
        missing = [f"snapshots/{name}" for name in names if name not in self._infos]
        for path, sealed in get_several(self._store, missing, _MAX_SNAPSHOT_BYTES):
            name = path.removeprefix("snapshots/")
            try:
                self._open(name, sealed)
            except _DAMAGE:
                damaged.append(name)
        infos = [self._infos[name] for name in names if name in self._infos]
        return sorted(infos, key=lambda info: (info.time_ns, info.id)), damaged

    def _load(self, name: str) -> SnapshotInfo:
        if name not in self._infos:
            self._open(name, self._store.get(f"snapshots/{name}", _MAX_SNAPSHOT_BYTES))
        return self._infos[name]

    def _open(self, name: str, sealed: Outcome) -> None:
        """Understand and keep a snapshot. Raises one of ``_DAMAGE``."""
        if not isinstance(sealed, memoryview):
            raise sealed
        if sha256(sealed).hexdigest() != name:
            raise ContentError("its content does not match its name")
        try:
            stored = msgspec.json.decode(self._box.document(sealed), type=_Stored)
            tree = bytes.fromhex(stored.tree)
            time_ns = moments.parse(stored.time)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ContentError(f"not a snapshot: {error}") from error
        if len(tree) != 32:
            raise ContentError("not a snapshot: malformed tree id")
        self._trees[name] = tree
        self._infos[name] = SnapshotInfo(name, time_ns, stored.hostname, tuple(stored.paths or ()), tuple(stored.tags or ()))

    def _names(self) -> list[str]:
        return [entry.name for entry in self._store.list("snapshots") if len(entry.name) == 64]

    def _hint(self, names: list[str]) -> str:
        """A few candidates for people; the newest first when there are not too many to look at."""
        if not names:
            return "the repository holds no snapshot"
        infos = self._readable(names)[0] if len(names) <= 50 else []
        return f"there are: {_listed(infos)}" if infos else "there are: " + ", ".join(n[:8] for n in names[:_CANDIDATES])


def _listed(infos: Iterable[SnapshotInfo]) -> str:
    newest = list(infos)[: -_CANDIDATES - 1 : -1]
    return ", ".join(f"{info.id[:8]} ({info.hostname} {' '.join(info.paths)[:60]})" for info in newest) or "none"
