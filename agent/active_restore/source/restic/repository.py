"""A restic repository as a source."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec

from active_restore.errors import ContentError, NoRepository, RepositoryDamaged
from active_restore.model import Kind, Node, Problem
from active_restore.source.base import Handover, SnapshotInfo
from active_restore.source.restic.blobs import BlobLoader
from active_restore.source.restic.index import BlobIndex
from active_restore.source.restic.indexing import IndexLoader
from active_restore.source.restic.keys import open_keys
from active_restore.source.restic.reader import ResticReader
from active_restore.source.restic.seal import Box, MasterKeys
from active_restore.source.restic.snapshots import Snapshots
from active_restore.source.restic.walk import Walker
from active_restore.store.base import ObjectNotFound, ObjectTruncated
from active_restore.store.location import Location

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from active_restore.store.base import Store

_VERSIONS = (1, 2)
_MAX_CONFIG_BYTES = 1 << 20
_UNKNOWN_PLACE = 1 << 63


class _Config(msgspec.Struct):
    version: int


class ResticSource:
    """See ``source.base.Source``."""

    def __init__(self, location: Location, keys: MasterKeys, index: BlobIndex | None = None) -> None:
        self.url = f"restic:{location.url}"
        self._location = location
        self._keys = keys
        self._store = location.open()
        self._loading = threading.Lock()
        self._box = Box(keys)
        self._snapshots = Snapshots(self._store, self._box)
        # An attached source was given the best index that there is.
        self._loader = IndexLoader(self._store, self._box) if index is None else None
        self._index = index
        self._retired: list[BlobIndex] = []

    @classmethod
    def open(cls, location: Location, password: bytes) -> ResticSource:
        """Derive the key and check the version. The index is loaded when it is first needed.

        Raises ``NoRepository``, ``WrongPassword``, ``RepositoryDamaged``, ``SourceUnavailable``.
        """
        location.check()
        store = location.open()
        try:
            try:
                config = store.get("config", _MAX_CONFIG_BYTES)
            except ObjectNotFound:
                hint = "check the place and the prefix; restic init makes a repository"
                raise NoRepository(f"there is no restic repository at {location.url}", hint) from None
            keys = open_keys(store, password)
            _check_version(Box(keys), config, location.url)
        except ObjectTruncated as error:
            raise RepositoryDamaged(f"{location.url}: {error}", "restore it from a copy of the repository") from error
        finally:
            store.close()
        return cls(location, keys)

    @classmethod
    def attach(cls, recipe: dict[str, Any], fds: Sequence[int]) -> ResticSource:
        """The other end of ``handover``. The descriptor of the index becomes ours."""
        keys = MasterKeys(*recipe["keys"])
        blobs, packs, fan_bits = recipe["shape"]
        return cls(Location.from_recipe(recipe["location"]), keys, BlobIndex(fds[0], (blobs, packs, fan_bits)))

    def snapshots(self) -> list[SnapshotInfo]:
        """See ``Source.snapshots``."""
        return self._snapshots.all()

    def select(self, name: str) -> SnapshotInfo:
        """See ``Source.select``."""
        return self._snapshots.select(name)

    def walk(self, snapshot: SnapshotInfo, subfolder: bytes = b"") -> Iterator[Node | Problem]:
        """See ``Source.walk``."""
        tree = self._snapshots.tree(snapshot)
        root = Node(path=b"", kind=Kind.DIR, mode=0o755, mtime_ns=snapshot.time_ns, atime_ns=snapshot.time_ns)
        walker = Walker(BlobLoader(self._store, self.index, self._box), self._recover)
        if subfolder.strip(b"/"):
            root, tree = walker.descend(tree, subfolder)
        yield from walker.walk(root, tree)

    def order_key(self, content: bytes) -> int:
        """See ``Source.order_key``: number of the pack, then offset of the first blob; what is in no pack comes last."""
        if not content:
            return _UNKNOWN_PLACE
        row = self.index.find(content[:32])
        if row < 0 and self._recover() is not None:
            row = self.index.find(content[:32])
        if row < 0:
            return _UNKNOWN_PLACE
        place = self.index.location(row)
        return place.pack << 32 | place.offset

    def reader(self) -> ResticReader:
        """See ``Source.reader``."""
        return ResticReader(self._connection, self.index, self._keys)

    def handover(self) -> Handover:
        """See ``Source.handover``."""
        recipe = {
            "kind": "restic",
            "location": self._location.recipe(),
            "keys": list(self._keys),
            "shape": list(self.index.shape),
        }
        return Handover(recipe, (self.index.descriptor,))

    @property
    def remote(self) -> bool:
        """See ``Source.remote``."""
        return self._store.remote

    @property
    def immutable(self) -> bool:
        """See ``Source.immutable``."""
        return True

    @property
    def index(self) -> BlobIndex:
        """Where each blob lies. Loaded once: a box is not for several threads, and after a restart all want it at once."""
        with self._loading:
            if self._index is None:
                loader = self._loader or IndexLoader(self._store, self._box)
                self._index = loader.load()
            return self._index

    def _connection(self) -> Store:
        # A remote store is safe for threads and pools its connections; a new one would read resolver and certificate
        # files again, which may be placeholders by now. Descriptors of a local one belong to their thread.
        return self._store if self._store.remote else self._location.open()

    def _recover(self) -> BlobIndex | None:
        """An index with the packs that no index file covers, made once; ``None`` when there are none."""
        better = self._loader.recover() if self._loader is not None else None
        if better is not None:
            # Its descriptor may be in a handover that is under way: it is closed with the source.
            self._retired.append(self.index)
            self._index = better
        return better

    def close(self) -> None:
        """See ``Source.close``."""
        for index in (self._index, *self._retired):
            if index is not None:
                index.close()
        self._index, self._retired = None, []
        self._store.close()


def _check_version(box: Box, sealed: memoryview, url: str) -> None:
    try:
        version = msgspec.json.decode(box.document(sealed), type=_Config).version
    except (ContentError, ValueError, RecursionError) as error:
        raise RepositoryDamaged(f"the config of {url} is damaged: {error}", "restore it from a copy") from error
    if version not in _VERSIONS:
        hint = "a newer active-restore may know it"
        raise RepositoryDamaged(f"{url} has repository version {version}; known are 1 and 2", hint)
