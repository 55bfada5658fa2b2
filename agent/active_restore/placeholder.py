"""Placeholders: lay them in a hidden staging directory, recognise them, and take their marker away.

Laying uses calls by name only (mknod, truncate, setxattr, chown, utimensat): opening a file while the file system is
guarded would cost an event each. The staging directory is root's alone, so no name in it can be somebody else's.

Not guaranteed: that laying can be resumed half-way. Nothing is visible before ``reveal``, so it is simply done again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import zlib
from typing import TYPE_CHECKING

import msgpack

from active_restore.catalog import RawFile
from active_restore.linux.files import open_beneath, private_cwd
from active_restore.linux.handles import HandleMaker, open_handle
from active_restore.marker import MARKER
from active_restore.model import Kind, Node, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

STAGING_PREFIX = ".active-restore-"

_TYPE_BITS = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
}
_DEFAULT_ACL = "system.posix_acl_default"
_CLEARED_BY_CHOWN = stat.S_ISUID | stat.S_ISGID
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def staging_name(restore_id: str) -> str:
    """The hidden directory of a restore, directly in its target."""
    return STAGING_PREFIX + restore_id


# A placeholder that was laid, as it goes into the catalog, and the inode number that an interceptor may want (else 0).
Laid = tuple[RawFile, int]


class Layer:
    """Lays one plan. Runs in one thread of its own, whose working directory it moves about."""

    def __init__(self, staging: str, marker_prefix: bytes, warn: Callable[[str], None], *, inode_numbers: bool = False) -> None:
        self._staging = os.open(staging, _DIRECTORY)
        self._inode_numbers = inode_numbers
        self._prefix = marker_prefix
        self._warn = warn
        self._handles = HandleMaker()
        self._pack = msgpack.Packer().pack
        # What a new inode belongs to in the staging directory (mode 0700, root's, no setgid bit in it).
        self._born = (os.geteuid(), os.getegid())
        self._here: bytes | None = None
        self._links: dict[tuple[tuple[int, int], Kind], bytes] = {}

    def lay(self, plan: Iterable[tuple[int, Node]]) -> Iterator[Laid | Problem]:
        """Create every node but the root; directories keep mode 0700 until ``finish_directories``."""
        private_cwd()
        os.umask(0)
        for row, node in plan:
            if not node.path:
                continue
            try:
                laid = self._lay(row, node)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                    raise
                yield Problem(node.path, error.errno or errno.EIO, f"cannot be created: {error.strerror}")
                continue
            if laid is not None:
                yield laid
        self._enter(b"")

    def finish_directories(self, backwards: Iterable[Node]) -> None:
        """Final metadata of directories, deepest first, after everything in them was created."""
        for node in backwards:
            if node.path:
                parent, _, name = node.path.rpartition(b"/")
                with contextlib.suppress(FileNotFoundError):
                    self._enter(parent)
                    self._dress(name, node)
        self._enter(b"")

    def close(self) -> None:
        """Give back the staging directory's descriptor."""
        os.close(self._staging)

    def _enter(self, directory: bytes) -> None:
        if directory != self._here:
            fd = open_beneath(self._staging, directory or b".", os.O_PATH | os.O_DIRECTORY)
            try:
                os.fchdir(fd)
            finally:
                os.close(fd)
            self._here = directory

    def _lay(self, row: int, node: Node) -> Laid | None:
        parent, _, name = node.path.rpartition(b"/")
        self._enter(parent)
        if node.link_key is not None and node.kind is not Kind.DIR:
            # With the kind: a hostile snapshot may claim that a file and a device are one inode.
            first = self._links.setdefault((node.link_key, node.kind), node.path)
            if first != node.path:
                os.link(first, name, src_dir_fd=self._staging, follow_symlinks=False)
                return None
        if node.kind is Kind.FILE:
            return self._lay_file(row, name, node)
        if node.kind is Kind.DIR:
            os.mkdir(name, 0o700)
            return None
        if node.kind is Kind.SYMLINK:
            os.symlink(node.link_target, name)
        else:
            os.mknod(name, _TYPE_BITS[node.kind] | node.mode, node.rdev)
        self._dress(name, node)
        return None

    def _lay_file(self, row: int, name: bytes, node: Node) -> Laid | None:
        os.mknod(name, stat.S_IFREG | node.mode)
        if not node.size:
            self._dress(name, node)
            return None
        os.truncate(name, node.size)
        handle = self._handles.of_name(name)
        marker = self._prefix + self._pack(row) + self._pack(zlib.crc32(handle))
        os.setxattr(name, MARKER, marker, os.XATTR_CREATE, follow_symlinks=False)
        self._dress(name, node)
        inode = os.stat(name, follow_symlinks=False).st_ino if self._inode_numbers else 0
        return (row, node.path, node.size, node.mtime_ns, node.content, handle), inode

    def _dress(self, name: bytes, node: Node) -> None:
        """Owner, mode, xattrs, times, in the order in which none undoes another."""
        if (node.uid, node.gid) != self._born or node.kind is Kind.DIR:
            os.chown(name, node.uid, node.gid, follow_symlinks=False)
        if node.kind is not Kind.SYMLINK and (node.kind is Kind.DIR or node.mode & _CLEARED_BY_CHOWN):
            os.chmod(name, node.mode)
        for key, value in node.xattrs:
            self._set_xattr(name, node, key, value)
        os.utime(name, ns=(node.atime_ns, node.mtime_ns), follow_symlinks=False)

    def _set_xattr(self, name: bytes, node: Node, key: bytes, value: bytes) -> None:
        if os.fsdecode(key) == MARKER:
            return
        try:
            os.setxattr(name, key, value, follow_symlinks=False)
        except OSError as error:
            self._warn(f"{os.fsdecode(node.path)}: xattr {os.fsdecode(key)} cannot be set ({error.strerror})")


def make_staging(target: str, restore_id: str) -> str:
    """A new, empty staging directory; what an interrupted laying left is removed."""
    path = os.path.join(target, staging_name(restore_id))
    remove_staging(target, restore_id)
    os.mkdir(path, 0o700)
    os.chown(path, 0, 0)
    with contextlib.suppress(OSError):
        # What the target bequeaths to new files is not in the backup.
        os.removexattr(path, _DEFAULT_ACL)
    return path


def remove_staging(target: str, restore_id: str) -> None:
    """Remove the staging directory and what is in it."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(os.path.join(target, staging_name(restore_id)))


def unmark(inode: int) -> None:
    """Take the marker from an inode (a descriptor of ``open_inode``); none there is no error.

    Nor is an inode that the user has made immutable (EPERM): the catalog knows that it is settled.
    """
    try:
        os.removexattr(inode, MARKER)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EPERM):
            raise


def read_marker(inode: int | str) -> bytes | None:
    """The marker of an inode, by a descriptor or by its path."""
    try:
        return os.getxattr(inode, MARKER)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def open_inode(mount_fd: int, handle: bytes, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor of a placeholder's inode; ``None`` where the user has deleted it.

    By its handle, each time anew: to go by ``/proc/self/fd`` from one descriptor to the next costs three times as much
    (measured), because the kernel makes a name there for each descriptor. Read-only ones may be kept: nobody meets ETXTBSY.
    """
    try:
        return open_handle(mount_fd, handle, flags | os.O_NOATIME)
    except OSError as error:
        if error.errno == errno.ESTALE:
            return None
        raise
