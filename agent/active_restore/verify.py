"""Compare a restored tree with its snapshot: content, metadata, names, and that nothing of ours is left in it.

Nothing is opened that still has our marker, so verifying never waits for a restore and never starts one. Content is
compared with what the source delivers, which it has verified by the backup's own hashes. Access times are not compared.

Memory grows with eight bytes for each name and some more for each inode with several names.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from active_restore.errors import ContentError, TargetError
from active_restore.linux.files import open_beneath
from active_restore.marker import EPOCH, MARKER
from active_restore.model import FileRef, Kind, Node, Problem
from active_restore.placeholder import STAGING_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from active_restore.source.base import Reader

_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIR: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
}
_NAMES_OF_TYPES = {bits: kind.name.lower() for kind, bits in _TYPES.items()}
_BATCH_FILES = 256
_BATCH_BYTES = 64 << 20
_STEP_BYTES = 1 << 20
_ZEROS = bytes(_STEP_BYTES)
# Labels that the kernel or a policy of this machine puts on every file, and the second names under which XFS shows its
# ACLs; a difference only where the backup has them, too.
_LOCAL_XATTRS = frozenset(
    {
        "security.selinux",
        "security.SMACK64",
        "security.evm",
        "security.ima",
        "trusted.SGI_ACL_FILE",
        "trusted.SGI_ACL_DEFAULT",
    }
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as in the snapshot. ``what`` is a word like ``missing``, ``mode`` or ``content``."""

    path: bytes
    what: str
    expected: str = ""
    found: str = ""


@dataclass(slots=True)
class Verdict:
    """What was compared; ``bytes`` counts content. Equal when ``differences`` is 0."""

    entries: int = 0
    files: int = 0
    bytes: int = 0
    differences: int = 0


class Verifier:
    """Verifies one target. ``tell`` is called with each difference as it is found."""

    def __init__(self, target: str, reader: Reader, tell: Callable[[Difference], None]) -> None:
        """Raises ``TargetError`` where ``target`` is no directory that can be read."""
        self._target = os.fsencode(os.path.abspath(target))
        try:
            self._root = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError(f"{target}: {error.strerror}", "name the directory that was restored") from error
        self._reader = reader
        self._tell_one = tell
        self._verdict = Verdict()
        self._names = array("Q")
        self._inodes: dict[tuple[int, int], object] = {}
        self._links: dict[tuple[int, int], tuple[int, int]] = {}
        self._batch: list[tuple[FileRef, int]] = []
        self._batch_bytes = 0

    def close(self) -> None:
        """Give back descriptors."""
        for _, fd in self._batch:
            os.close(fd)
        os.close(self._root)

    def run(self, entries: Iterable[Node | Problem], unknown_root_time_ns: int, *, extra: bool = False) -> Verdict:
        """Compare with ``entries``, parents first. With ``extra`` a name that is not in the snapshot is a difference, too.

        A root whose time is ``unknown_root_time_ns`` (that of the snapshot) was made up by the source: restic keeps no
        metadata of the root of a snapshot. Raises ``SourceUnavailable``.
        """
        for entry in entries:
            if isinstance(entry, Problem):
                self._tell(entry.path, "source", "readable", entry.detail)
                continue
            self._verdict.entries += 1
            self._names.append(_digest(entry.path))
            if entry.path or entry.mtime_ns != unknown_root_time_ns:
                self._compare(entry)
        self._compare_batch()
        self._scan(extra=extra)
        return self._verdict

    def _tell(self, path: bytes, what: str, expected: str = "", found: str = "") -> None:
        self._verdict.differences += 1
        self._tell_one(Difference(path, what, expected, found))

    def _compare(self, node: Node) -> None:
        try:
            # O_PATH opens nothing: neither a placeholder nor a fifo nor a device notices.
            fd = open_beneath(self._root, node.path or b".", os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
            self._tell(node.path, "missing" if missing else "unreadable", found=error.strerror or "")
            return
        try:
            wanted = self._compare_inode(node, fd)
        except OSError as error:
            wanted = False
            self._tell(node.path, "unreadable", found=error.strerror or "")
        if wanted:
            self._enqueue(node, fd)
        else:
            os.close(fd)

    def _compare_inode(self, node: Node, fd: int) -> bool:
        """Compare all but the content; whether that is to be compared, too."""
        found = os.fstat(fd)
        if stat.S_IFMT(found.st_mode) != _TYPES[node.kind]:
            self._tell(node.path, "type", node.kind.name.lower(), _NAMES_OF_TYPES.get(stat.S_IFMT(found.st_mode), "?"))
            return False
        self._compare_metadata(node, fd, found)
        first_name = self._compare_links(node, found)
        if node.kind is not Kind.FILE:
            return False
        if _has_marker(f"/proc/self/fd/{fd}", follow_symlinks=True):
            self._tell(node.path, "not restored", found="a placeholder")
            return False
        if found.st_size != node.size:
            self._tell(node.path, "size", str(node.size), str(found.st_size))
            return False
        return first_name

    def _compare_metadata(self, node: Node, fd: int, found: os.stat_result) -> None:
        if node.kind is not Kind.SYMLINK and stat.S_IMODE(found.st_mode) != node.mode:
            self._tell(node.path, "mode", f"{node.mode:04o}", f"{stat.S_IMODE(found.st_mode):04o}")
        if (found.st_uid, found.st_gid) != (node.uid, node.gid):
            self._tell(node.path, "owner", f"{node.uid}:{node.gid}", f"{found.st_uid}:{found.st_gid}")
        if found.st_mtime_ns != node.mtime_ns:
            self._tell(node.path, "mtime", _time(node.mtime_ns), _time(found.st_mtime_ns))
        if node.kind in (Kind.CHAR, Kind.BLOCK) and found.st_rdev != node.rdev:
            self._tell(node.path, "device", _device(node.rdev), _device(found.st_rdev))
        if node.kind is Kind.SYMLINK:
            link = os.readlink(b"", dir_fd=fd)
            if link != node.link_target:
                self._tell(node.path, "symlink", os.fsdecode(node.link_target), os.fsdecode(link))
        self._compare_xattrs(node, fd)

    def _compare_xattrs(self, node: Node, fd: int) -> None:
        expected = {os.fsdecode(name): value for name, value in node.xattrs}
        here = f"/proc/self/fd/{fd}"
        found = {name: os.getxattr(here, name) for name in os.listxattr(here) if name not in (MARKER, EPOCH)}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name) and (name in expected or name not in _LOCAL_XATTRS):
                self._tell(node.path, f"xattr {name}", _value(expected.get(name)), _value(found.get(name)))

    def _compare_links(self, node: Node, found: os.stat_result) -> bool:
        """Compare which names are one inode; whether this is the first name of it that we see."""
        if node.kind is Kind.DIR or (node.link_key is None and found.st_nlink == 1):
            return True
        inode = (found.st_dev, found.st_ino)
        # Names of one inode must be one inode, and those of two inodes two. A name without partners is its own key.
        key: object = node.link_key or node.path
        first_name = inode not in self._inodes
        if self._inodes.setdefault(inode, key) != key:
            self._tell(node.path, "hard link", "an inode of its own", "shared with another file")
        if node.link_key is not None and self._links.setdefault(node.link_key, inode) != inode:
            self._tell(node.path, "hard link", "one inode with its other names", "an inode of its own")
        return first_name

    def _enqueue(self, node: Node, fd: int) -> None:
        """Take the descriptor over and compare the content with that of the others in the batch."""
        self._batch.append((FileRef(node.path, node.size, node.mtime_ns, node.content), fd))
        self._batch_bytes += node.size
        if len(self._batch) >= _BATCH_FILES or self._batch_bytes >= _BATCH_BYTES:
            self._compare_batch()

    def _compare_batch(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        content: _Content | None = None
        try:
            for position, piece in self._reader.read_many([ref for ref, _ in batch]):
                ref, fd = batch[position]
                if content is None:
                    content = _Content(fd, ref.size)
                if isinstance(piece, ContentError):
                    self._tell(ref.path, "source", "readable", str(piece))
                elif piece is not None:
                    content.piece(piece.offset, bytes(piece.data))
                    continue
                elif not content.ends_equal():
                    self._tell(ref.path, "content", "as in the snapshot", f"differs from byte {content.differs_at}")
                self._verdict.files += 1
                self._verdict.bytes += ref.size
                content.close()
                content = None
        finally:
            if content is not None:
                content.close()
            for _, fd in batch:
                os.close(fd)

    def _scan(self, *, extra: bool) -> None:
        """Look for what should not be there: markers, staging directories and, if asked, names that nobody knows."""
        names = np.sort(np.frombuffer(self._names, np.uint64))
        for directory, entries in _directories(self._target):
            here = os.path.relpath(directory, self._target)
            paths = [entry.name if here == b"." else here + b"/" + entry.name for entry in entries]
            known = _contains(names, np.array([_digest(path) for path in paths], np.uint64))
            for entry, path, expected in zip(entries, paths, known, strict=True):
                if here == b"." and entry.name.startswith(os.fsencode(STAGING_PREFIX)) and entry.is_dir(follow_symlinks=False):
                    self._tell(path, "leftover", found="a staging directory")
                elif not expected and entry.is_file(follow_symlinks=False) and _has_marker(entry.path):
                    self._tell(path, "leftover", found="a placeholder that is not in the snapshot")
                elif extra and not expected:
                    self._tell(path, "extra")


class _Content:
    """A file that is compared with pieces in ascending order; what lies between them must be zero."""

    def __init__(self, path_fd: int, size: int) -> None:
        self._size = size
        self._position = 0
        self.differs_at = -1
        try:
            # Through /proc: the inode whose marker was looked for, whatever has its name now.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
            self._fd = os.open(f"/proc/self/fd/{path_fd}", flags)
        except OSError:
            self._fd = -1
            self.differs_at = 0

    def close(self) -> None:
        """Give back the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)

    def piece(self, offset: int, data: bytes) -> None:
        """Compare one piece and what lies before it."""
        self._zeros(offset)
        if self.differs_at < 0 and self._read(len(data), offset) != data:
            self.differs_at = offset
        self._position = offset + len(data)

    def ends_equal(self) -> bool:
        """Compare what follows the last piece; whether all was equal."""
        self._zeros(self._size)
        return self.differs_at < 0

    def _zeros(self, end: int) -> None:
        while self.differs_at < 0 and self._position < end:
            try:
                self._position = os.lseek(self._fd, self._position, os.SEEK_DATA)
            except OSError:
                return  # a hole up to the end
            length = min(_STEP_BYTES, end - self._position)
            if length > 0 and self._read(length, self._position) != _ZEROS[:length]:
                self.differs_at = self._position
            self._position += _STEP_BYTES

    def _read(self, length: int, offset: int) -> bytes | None:
        """Exactly so many bytes, ``None`` where they cannot be had."""
        try:
            data = os.pread(self._fd, length, offset)
        except OSError:
            return None
        return data if len(data) == length else None


def _directories(root: bytes) -> Iterator[tuple[bytes, list[os.DirEntry[bytes]]]]:
    """Every directory below ``root`` on its file system, with its entries; one that cannot be read has none."""
    device = os.lstat(root).st_dev
    pending = [root]
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(directory) as listing:
                entries = list(listing)
        except OSError:
            continue  # told as unreadable by the comparison, if it belongs to the snapshot
        yield directory, entries
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_dev == device:
                    pending.append(entry.path)


def _contains(ascending: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of ``wanted`` are there; by bisection, since directories are many and small."""
    if not len(ascending):
        return np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[places] == wanted
    return found


def _has_marker(path: bytes | str, *, follow_symlinks: bool = False) -> bool:
    try:
        os.getxattr(path, MARKER, follow_symlinks=follow_symlinks)
    except OSError:
        return False
    return True


def _digest(path: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "little")


def _time(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9:09d}"


def _device(rdev: int) -> str:
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def _value(value: bytes | None) -> str:
    if value is None:
        return "none"
    return value.hex() if len(value) <= 64 else f"{len(value)} bytes"
