"""A restore over an existing tree: which files are kept because they are what the snapshot has."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from active_restore.errors import ContentError
from active_restore.linux.files import open_beneath
from active_restore.model import FileRef, Kind, Node, Piece
from active_restore.placeholder import read_marker

if TYPE_CHECKING:
    from active_restore.config import Existing
    from active_restore.source.base import Reader

_CHUNK_BYTES = 1 << 20


class ExistingTree:
    """Asks the target about nodes of the snapshot. ``root`` is a descriptor of the target directory."""

    def __init__(self, root: int, mode: Existing, reader: Reader) -> None:
        self._root = root
        self._content = mode == "content"
        self._reader = reader

    def keeps(self, node: Node) -> bool:
        """Whether a regular file with the same size and mtime (and content, if asked) is there. No link is followed.

        Names of one inode with several links are laid anew, all of them: half of a link group cannot be kept.
        """
        if node.kind is not Kind.FILE or node.link_key is not None:
            return False
        try:
            inode = open_beneath(self._root, node.path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                return False
            raise
        try:
            found = os.fstat(inode)
            same = stat.S_ISREG(found.st_mode) and found.st_size == node.size and found.st_nlink == 1
            if not same or read_marker(f"/proc/self/fd/{inode}") is not None:
                return False
            if self._content:
                return self._same_content(inode, node)
            return found.st_mtime_ns == node.mtime_ns
        finally:
            os.close(inode)

    def _same_content(self, inode: int, node: Node) -> bool:
        fd = os.open(f"/proc/self/fd/{inode}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            at = 0
            for piece in self._reader.read(FileRef(node.path, node.size, node.mtime_ns, node.content)):
                if not _is_zero(fd, at, piece.offset) or not _equal(fd, piece):
                    return False
                at = piece.offset + len(piece.data)
            return _is_zero(fd, at, node.size)
        except ContentError:
            # The backup cannot say; a file that is there is worth more than one that cannot be restored.
            return True
        finally:
            os.close(fd)


def _equal(fd: int, piece: Piece) -> bool:
    return os.pread(fd, len(piece.data), piece.offset) == piece.data


def _is_zero(fd: int, start: int, end: int) -> bool:
    while start < end:
        chunk = os.pread(fd, min(_CHUNK_BYTES, end - start), start)
        if not chunk or chunk.count(0) != len(chunk):
            return False
        start += len(chunk)
    return True


def dress(root: int, node: Node) -> None:
    """Give a kept file the snapshot's owner, mode, xattrs and times. Raises ``OSError``."""
    inode = open_beneath(root, node.path, os.O_PATH | os.O_NOFOLLOW)
    try:
        path = f"/proc/self/fd/{inode}"
        os.chown(path, node.uid, node.gid)
        os.chmod(path, node.mode)
        for key, value in node.xattrs:
            with contextlib.suppress(OSError):
                os.setxattr(path, key, value)
        os.utime(path, ns=(node.atime_ns, node.mtime_ns))
    finally:
        os.close(inode)
