"""A directory tree as a source: a copy, a file system snapshot, a mounted backup."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import msgspec

from active_restore.errors import ContentError, NoRepository, SnapshotError, SourceUnavailable
from active_restore.model import Kind, Node, Piece, Problem
from active_restore.source import extents, folder, manifest
from active_restore.source.base import Handover, SnapshotInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from active_restore.model import FileRef

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_DAMAGED = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EACCES, errno.EPERM})
_NAME = "dir"
PART_BYTES = 256 << 10
"""Of a large file that is read by range: small, as whoever waits wants little; who reads on is read ahead for."""


class Content(NamedTuple):
    """What ``Node.content`` holds: the inode number (order on the medium), the digest if there is a manifest, the subfolder."""

    inode: int
    digest: bytes
    prefix: bytes

    def pack(self) -> bytes:
        """As bytes: u64 inode, length of the digest, digest, prefix."""
        return struct.pack("<QB", self.inode, len(self.digest)) + self.digest + self.prefix

    @classmethod
    def unpack(cls, raw: bytes) -> Content:
        """The other end of ``pack``."""
        inode, length = struct.unpack_from("<QB", raw)
        return cls(inode, raw[9 : 9 + length], raw[9 + length :])


class DirSource:
    """See ``source.base.Source``. There is one snapshot, ``dir``: the tree as it is now."""

    remote = False
    immutable = False

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self.url = f"dir:{self._path}"
        self._snapshot = SnapshotInfo(_NAME, time.time_ns(), os.uname().nodename, (self._path,), ())

    @classmethod
    def open(cls, path: str) -> DirSource:
        """For a user: raises ``NoRepository`` where there is no directory."""
        source = cls(path)
        if not os.path.isdir(source._path):
            raise NoRepository(f"there is no directory {source._path}", "check the path; is it mounted?")
        return source

    def snapshots(self) -> list[SnapshotInfo]:
        """See ``Source.snapshots``."""
        return [self._snapshot]

    def select(self, name: str) -> SnapshotInfo:
        """See ``Source.select``."""
        if name not in ("latest", _NAME):
            raise SnapshotError(f"a directory has no snapshot {name!r}", "leave it out, or name it latest")
        return self._snapshot

    def walk(self, snapshot: SnapshotInfo, subfolder: bytes = b"") -> Iterator[Node | Problem]:
        """See ``Source.walk``. With a manifest, files that it does not list and files that are gone are problems."""
        del snapshot
        prefix = b"/".join(name for name in subfolder.split(b"/") if name not in (b"", b"."))
        digests = manifest.load(self._path)
        expected = {path for path in digests or () if not prefix or path.startswith(prefix + b"/")}
        start = _open_start(self._path, prefix)
        try:
            for item in folder.walk(start, prefix):
                if isinstance(item, Problem):
                    yield item
                    continue
                place = b"/".join(filter(None, (prefix, item.node.path)))
                expected.discard(place)
                yield _with_content(item, digests, place, prefix)
        except OSError as error:
            raise SourceUnavailable(f"{self._path}: {error.strerror}", "is it mounted?") from error
        finally:
            os.close(start)
        for place in sorted(expected):
            yield Problem(place[len(prefix) :].lstrip(b"/"), errno.EIO, "listed in the manifest but missing")

    def order_key(self, content: bytes) -> int:
        """See ``Source.order_key``: the inode number."""
        return Content.unpack(content).inode if content else 0

    def reader(self) -> DirReader:
        """See ``Source.reader``."""
        return DirReader(self._path)

    def handover(self) -> Handover:
        """See ``Source.handover``."""
        return Handover({"kind": "dir", "path": os.fsencode(self._path)}, ())

    @classmethod
    def attach(cls, recipe: dict[str, Any]) -> DirSource:
        """The other end of ``handover``. The directory may be away just now: reading says so, and is tried again."""
        return cls(os.fsdecode(recipe["path"]))

    def close(self) -> None:
        """See ``Source.close``: nothing is held."""


class EvenParts(Sequence[int]):
    """The bounds of parts that are all of one size but the last."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return 1 + -(-self._size // PART_BYTES)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        """The offset of a part; the size of the file behind the last one."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return min(index * PART_BYTES, self._size)


class DirReader:
    """See ``source.base.Reader``. A file that changes while it is read, or since it was planned, is a ``ContentError``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._root = -1
        self._parent: tuple[bytes, int] = (b"", -1)

    def read(self, ref: FileRef) -> Iterator[Piece]:
        """See ``Reader.read``. With a manifest the digest is compared after the last piece was yielded."""
        yield from self._read(ref, Content.unpack(ref.content).digest, None)

    def _read(self, ref: FileRef, digest: bytes, part: tuple[int, int] | None) -> Iterator[Piece]:
        try:
            descriptor = self._open(b"/".join(filter(None, (Content.unpack(ref.content).prefix, ref.path))))
            try:
                yield from _verified(descriptor, ref, digest, part)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._drop_folders()
            raise self._translated(error, ref.path) from error

    def read_many(self, refs: Sequence[FileRef]) -> Iterator[tuple[int, Piece | ContentError | None]]:
        """See ``Reader.read_many``: in the order of inode numbers."""
        for position in sorted(range(len(refs)), key=lambda one: Content.unpack(refs[one].content).inode):
            try:
                for piece in self.read(refs[position]):
                    yield position, piece
            except ContentError as error:
                yield position, error
                continue
            yield position, None

    def bounds(self, ref: FileRef) -> Sequence[int] | None:
        """See ``Reader.bounds``. With a manifest there is one digest for all of the file."""
        if Content.unpack(ref.content).digest:
            return None
        return EvenParts(ref.size)

    def read_part(self, ref: FileRef, bounds: Sequence[int], first: int, last: int) -> Iterator[Piece]:
        """See ``Reader.read_part``."""
        yield from self._read(ref, b"", (bounds[first], bounds[last]))

    def close(self) -> None:
        """See ``Reader.close``."""
        self._drop_folders()

    def _open(self, path: bytes) -> int:
        parent, _, name = path.rpartition(b"/")
        if self._root < 0:
            self._root = _open_root(self._path)
        if self._parent[1] < 0 or self._parent[0] != parent:
            opened = folder.open_folder(self._root, parent)
            if self._parent[1] >= 0:
                os.close(self._parent[1])
            # Files come folder by folder: the last folder is all the cache that is needed.
            self._parent = (parent, opened)
        # O_NONBLOCK: a fifo that took the place of the file must not hold us.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self._parent[1])

    def _drop_folders(self) -> None:
        for descriptor in (self._root, self._parent[1]):
            if descriptor >= 0:
                os.close(descriptor)
        self._root, self._parent = -1, (b"", -1)

    def _translated(self, error: OSError, path: bytes) -> ContentError | SourceUnavailable:
        name = path.decode(errors="backslashreplace")
        if error.errno in _DAMAGED or (error.errno in _GONE and os.path.isdir(self._path)):
            return ContentError(f"{name}: {error.strerror}")
        return SourceUnavailable(f"{self._path}: {error.strerror}", "is it mounted?")


def _verified(descriptor: int, ref: FileRef, digest: bytes, part: tuple[int, int] | None) -> Iterator[Piece]:
    running = manifest.Digest() if digest else None
    try:
        for offset, data in extents.pieces(descriptor, ref.size, ref.mtime_ns, part):
            if running is not None:
                running.feed(offset, data)
            yield Piece(offset, data)
    except ContentError as error:
        raise ContentError(f"{_text(ref.path)} {error}", error.hint) from None
    if running is not None and running.finish(ref.size) != digest:
        raise ContentError(f"{_text(ref.path)} does not match the manifest", "restore it from another copy")


def _with_content(entry: folder.Entry, digests: Mapping[bytes, bytes] | None, place: bytes, prefix: bytes) -> Node | Problem:
    node = entry.node
    if node.kind is not Kind.FILE:
        return node
    digest = b""
    if digests is not None:
        digest = digests.get(place, b"")
        if not digest:
            return Problem(node.path, errno.EBADMSG, "not in the manifest: make it anew")
    return msgspec.structs.replace(node, content=Content(entry.inode, digest, prefix).pack())


def _open_root(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceUnavailable(f"{path}: {error.strerror}", "is it mounted?") from error


def _open_start(path: str, prefix: bytes) -> int:
    root = _open_root(path)
    try:
        return folder.open_folder(root, prefix)
    except OSError as error:
        raise SnapshotError(f"there is no folder /{_text(prefix)}: {error.strerror}", "check the subfolder") from error
    finally:
        os.close(root)


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
