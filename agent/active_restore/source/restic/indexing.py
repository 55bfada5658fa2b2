"""Loading the index: index files first, pack headers for what no good index file covers.

Source: restic ``doc/design.rst``, "Indexing".
"""

from __future__ import annotations

import logging
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import numpy as np

from active_restore.errors import ContentError
from active_restore.linux.libc import give_back_memory
from active_restore.source.restic import pack as packs
from active_restore.source.restic.index import BlobIndex, IndexBuilder
from active_restore.source.restic.seal import MAX_UNPACKED_BYTES, OVERHEAD_BYTES
from active_restore.store.base import ObjectNotFound, ObjectTruncated
from active_restore.store.several import get_several

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from active_restore.source.restic.seal import Box
    from active_restore.store.base import Store
    from active_restore.store.several import Outcome

# Larger blobs are refused: data blobs of restic are at most 8 MiB, a tree of 500,000 entries has about 200 MiB.
MAX_BLOB_BYTES = 256 << 20
_U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_log = logging.getLogger(__name__)


class _Blob(msgspec.Struct, gc=False):
    id: str
    offset: _U32
    length: _U32
    uncompressed_length: _U32 = 0


class _Pack(msgspec.Struct, gc=False):
    id: str
    blobs: list[_Blob]


class _IndexFile(msgspec.Struct):
    packs: list[_Pack] | None = None
    supersedes: list[str] | None = None


class _Packed(NamedTuple):
    """The blobs of a pack: ids of 32 bytes, and rows of offset, sealed length, plain length."""

    pack: bytes
    ids: bytes
    places: NDArray[np.uint32]


class IndexLoader:
    """Makes the index of a repository, and makes it anew with pack headers when it proves incomplete."""

    def __init__(self, store: Store, box: Box) -> None:
        self._store = store
        self._box = box
        self._recovered = False

    def load(self) -> BlobIndex:
        """The index. Damaged index files are replaced by the headers of the packs that no other file covers."""
        builder = IndexBuilder()
        if not self._add_files(builder):
            self._recovered = True
            self._add_headers(builder)
        index = builder.build()
        del builder
        # Making it took twice as much as it keeps, in pieces that the allocator would hold on to.
        give_back_memory()
        return index

    def recover(self) -> BlobIndex | None:
        """The index with the packs that no index file covers; ``None`` when there are none, or when called again."""
        if self._recovered:
            return None
        self._recovered = True
        builder = IndexBuilder()
        self._add_files(builder)
        return builder.build() if self._add_headers(builder) else None

    def _add_files(self, builder: IndexBuilder) -> bool:
        """Add what the index files say; false where one of them is damaged, or where there are none."""
        names = sorted(entry.name for entry in self._store.list("index"))
        loaded: dict[str, list[_Packed]] = {}
        superseded: set[str] = set()
        for path, sealed in get_several(self._store, [f"index/{name}" for name in names], MAX_UNPACKED_BYTES):
            name = path.removeprefix("index/")
            try:
                document = self._opened(name, sealed)
            except (ContentError, ObjectNotFound, ObjectTruncated) as error:
                _log.warning("index file %s is damaged (%s): reading pack headers instead", name[:8], error)
                continue
            superseded.update(document.supersedes or ())
            loaded[name] = [packed for pack in document.packs or () if (packed := _packed(pack)) is not None]
        for name, packs_of_file in loaded.items():
            if name in superseded:
                continue
            for packed in packs_of_file:
                if packed.pack not in builder:
                    builder.add(*_plausible(packed))
        return len(loaded) == len(names) > 0

    def _add_headers(self, builder: IndexBuilder) -> bool:
        """Add the packs that the builder does not know, by their headers; whether there were any."""
        found = False
        for entry in self._store.list("data"):
            pack_id = _pack_id(entry.name)
            if pack_id is None or pack_id in builder:
                continue
            try:
                size = entry.size_bytes if entry.size_bytes >= 0 else self._store.size(packs.path(entry.name))
                header = packs.read_header(self._store, self._box, entry.name, size)
                builder.add(*_plausible(_Packed(pack_id, *header)))
                found = True
            except (ContentError, ObjectNotFound, ObjectTruncated) as error:
                _log.warning("pack %s is damaged: %s", entry.name[:8], error)
        return found

    def _opened(self, name: str, sealed: Outcome) -> _IndexFile:
        if not isinstance(sealed, memoryview):
            raise sealed
        if sha256(sealed).hexdigest() != name:
            raise ContentError("its content does not match its name")
        try:
            return msgspec.json.decode(self._box.document(sealed), type=_IndexFile)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ContentError(f"not an index: {error}") from error


def _packed(pack: _Pack) -> _Packed | None:
    """The compact form of a pack in an index file, ``None`` for a malformed one."""
    pack_id = _pack_id(pack.id)
    try:
        ids = bytes.fromhex("".join([blob.id for blob in pack.blobs]))
    except ValueError:
        ids = b""
    if pack_id is None or len(ids) != 32 * len(pack.blobs):
        _log.warning("the index of pack %s holds a malformed id", pack.id[:8])
        return None
    places = [(blob.offset, blob.length, blob.uncompressed_length) for blob in pack.blobs]
    return _Packed(pack_id, ids, np.array(places, np.uint32).reshape(-1, 3))


def _plausible(packed: _Packed) -> _Packed:
    """Without the entries that no honest program writes."""
    wide = packed.places.astype(np.int64)
    good = (
        (wide[:, 1] >= OVERHEAD_BYTES)
        & (wide[:, 0] + wide[:, 1] <= 0xFFFFFFFF)
        & (wide[:, 1] <= MAX_BLOB_BYTES)
        & (wide[:, 2] <= MAX_BLOB_BYTES)
    )
    if good.all():
        return packed
    _log.warning("the index of pack %s holds absurd sizes", packed.pack.hex()[:8])
    ids = np.frombuffer(packed.ids, np.uint8).reshape(-1, 32)[good].tobytes()
    return _Packed(packed.pack, ids, packed.places[good])


def _pack_id(name: str) -> bytes | None:
    try:
        pack_id = bytes.fromhex(name)
    except ValueError:
        return None
    return pack_id if len(pack_id) == 32 and len(name) == 64 else None
