"""Walking a directory tree by descriptors: no path is resolved twice, no symlink is followed."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from active_restore.model import Kind, Node, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARKER = b"trusted.active_restore"
# What we make ourselves at the root of a tree (staging folders, the manifest) is no part of it.
_OURS = b".active-restore"
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIR,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
}


class Entry(NamedTuple):
    """A node, and the inode it was made from."""

    node: Node
    inode: int


def walk(root: int, prefix: bytes = b"") -> Iterator[Entry | Problem]:
    """The tree below the descriptor ``root``, root first, a folder's entries in the order of their names' bytes.

    ``prefix`` is the path of the root in the whole source. Stays on the mount of the root like ``cp -ax``: what is
    mounted below appears as an empty folder, subvolumes of btrfs belong to the tree. Raises ``OSError`` for the root.
    """
    status = os.fstat(root)
    yield _entry(root, b".", b"", status)
    mount = _mount_id(root)
    pending: list[tuple[bytes, int]] = [(b"", status.st_dev)]
    while pending:
        path, device = pending.pop()
        below: list[tuple[bytes, int]] = []
        try:
            folder = open_folder(root, path)
        except OSError as error:
            yield Problem(path, error.errno or errno.EIO, f"unreadable folder: {error.strerror}")
            continue
        try:
            if os.fstat(folder).st_dev == device or _mount_id(folder) == mount:
                for item in _children(folder, path, is_top=not path and not prefix):
                    if isinstance(item, Entry) and item.node.kind is Kind.DIR:
                        below.append((item.node.path, device))
                    yield item
        finally:
            os.close(folder)
        pending.extend(reversed(below))


def open_folder(root: int, path: bytes) -> int:
    """A descriptor of a folder below ``root``, never through a symlink. Raises ``OSError``."""
    folder = os.open(b".", FOLDER_FLAGS, dir_fd=root)
    for name in path.split(b"/") if path else ():
        parent = folder
        try:
            folder = os.open(name, FOLDER_FLAGS, dir_fd=parent)
        finally:
            os.close(parent)
    return folder


def _children(folder: int, path: bytes, *, is_top: bool) -> Iterator[Entry | Problem]:
    try:
        names = sorted(map(os.fsencode, os.listdir(folder)))
    except OSError as error:
        yield Problem(path, error.errno or errno.EIO, f"unreadable folder: {error.strerror}")
        return
    for name in names:
        if is_top and name.startswith(_OURS):
            continue
        place = path + b"/" + name if path else name
        try:
            yield _entry(folder, name, place, os.stat(name, dir_fd=folder, follow_symlinks=False))
        except OSError as error:
            yield Problem(place, error.errno or errno.EIO, error.strerror or "cannot be read")


def _entry(folder: int, name: bytes, path: bytes, status: os.stat_result) -> Entry:
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    node = Node(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        atime_ns=status.st_atime_ns,
        size=status.st_size if kind is Kind.FILE else 0,
        link_target=os.readlink(name, dir_fd=folder) if kind is Kind.SYMLINK else b"",
        rdev=status.st_rdev if kind in (Kind.CHAR, Kind.BLOCK) else 0,
        xattrs=_xattrs(folder, name),
        link_key=(status.st_dev, status.st_ino) if status.st_nlink > 1 and kind is not Kind.DIR else None,
        holes=max(0, status.st_size - status.st_blocks * 512) if kind is Kind.FILE else 0,
    )
    return Entry(node, status.st_ino)


def _xattrs(folder: int, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    # There is no lgetxattrat before Linux 6.13; the magic link of the descriptor does the same.
    place = b"/proc/self/fd/%d/%s" % (folder, name)
    try:
        names = os.listxattr(place, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return ()
        raise
    if not names:
        return ()
    kept = sorted(one for one in map(os.fsencode, names) if one != _MARKER)
    return tuple((one, os.getxattr(place, one, follow_symlinks=False)) for one in kept)


def _mount_id(descriptor: int) -> int:
    """Identity of the mount that a descriptor lies on (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("mnt_id:"):
                return int(line[7:])
    return -1
