"""A store that is a dict, and whole repositories of a few blobs in it: thousands of them a second can be read."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, cast

import zstandard

from active_restore.source.restic.repository import ResticSource
from active_restore.store.base import Entry, ObjectNotFound, ObjectTruncated
from tests.source.forge import KEYS, TIME, seal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from active_restore.store.location import Location

_REFERENCE = re.compile(rb"@(\d{1,2})")
_BOMB = 1 << 10


class MemoryStore:
    """See ``store.base.Store``; also the location of itself."""

    url = "memory:"
    remote = False

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects

    def open(self) -> MemoryStore:
        """A connection."""
        return self

    def get(self, name: str, limit_bytes: int) -> memoryview:
        """See ``Store.get``."""
        if name not in self._objects:
            raise ObjectNotFound(name)
        if len(self._objects[name]) > limit_bytes:
            raise ObjectTruncated(name)
        return memoryview(self._objects[name])

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        """See ``Store.get_range``."""
        found = self.get(name, 1 << 40)[offset : offset + length]
        if len(found) != length:
            raise ObjectTruncated(name)
        return found

    def list(self, folder: str) -> list[Entry]:
        """See ``Store.list``."""
        inside = [name for name in sorted(self._objects) if name.startswith(folder + "/")]
        return [Entry(name.rpartition("/")[2], len(self._objects[name])) for name in inside]

    def size(self, name: str) -> int:
        """See ``Store.size``."""
        return len(self.get(name, 1 << 40))

    def close(self) -> None:
        """See ``Store.close``."""


def repository(parts: Sequence[bytes], lies: Sequence[tuple[int, str, int]]) -> ResticSource:
    """A repository with a blob for each part; the last one is the root tree.

    The first byte of a part says what it is: ``t`` a tree, ``b`` a blob that is compressed a thousandfold, anything else
    data. ``@N`` in a tree stands for the id of part N; of a part that is still to come, for an id that the index claims to
    be that part's (which no honest program can make, but a cycle needs). ``lies`` are (part, member of the index, value).
    """
    ids: list[bytes] = []
    claimed = {number: hashlib.sha256(b"later %d" % number).digest() for number in range(len(parts))}
    pack, entries = bytearray(), []
    for part in parts:
        tree, bomb, body = part[:1] == b"t", part[:1] == b"b", part[1:]

        def reference(found: re.Match[bytes]) -> bytes:
            number = int(found[1])
            known = ids[number] if number < len(ids) else claimed.get(number, bytes(32))
            return known.hex().encode()

        plain = _REFERENCE.sub(reference, body) if tree else body * _BOMB if bomb else body
        sealed = seal(zstandard.compress(plain))
        ids.append(hashlib.sha256(plain).digest())
        place: dict[str, Any] = {"type": "tree" if tree else "data", "offset": len(pack), "length": len(sealed)}
        place["uncompressed_length"] = len(plain)
        entries.append({"id": ids[-1].hex()} | place)
        entries.append({"id": claimed[len(ids) - 1].hex()} | place)
        pack += sealed
    for number, member, value in lies if entries else ():
        entries[number % len(entries)][member] = value
    return opened(bytes(pack), {"packs": [{"id": "ab" * 32, "blobs": entries}]}, ids[-1] if ids else bytes(32))


def opened(pack: bytes, index: Any, root: bytes) -> ResticSource:
    """The source of a repository with one pack, one index file and one snapshot."""
    objects = {f"data/ab/{'ab' * 32}": pack}
    for folder, document in (("index", index), ("snapshots", {"time": TIME, "tree": root.hex()})):
        sealed = seal(b"\x02" + zstandard.compress(json.dumps(document).encode()))
        objects[f"{folder}/{hashlib.sha256(sealed).hexdigest()}"] = sealed
    return ResticSource(cast("Location", MemoryStore(objects)), KEYS)
