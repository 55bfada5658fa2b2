"""Mounts that nobody else can see: of a file system of their own, or of one that is mounted elsewhere, too."""

from __future__ import annotations

import os

from active_restore.linux.libc import check, libc

# The same numbers on all processors.
_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 430, 431, 432
_CLOEXEC = 1
_CMD_CREATE = 6
_OPEN_TREE_CLONE = 1


def detached(kind: str) -> int:
    """A descriptor of the root of a new mount of this kind; the caller closes it. Raises ``OSError``."""
    context = check(libc.syscall(_FSOPEN, kind.encode(), _CLOEXEC), kind)
    try:
        check(libc.syscall(_FSCONFIG, context, _CMD_CREATE, None, None, 0), kind)
        return check(libc.syscall(_FSMOUNT, context, _CLOEXEC, 0), kind)
    finally:
        os.close(context)


class PrivateMount:
    """Another mount of what is mounted at ``path``, as with mount --bind, but visible to nobody. It lives until ``close``.

    Raises ``OSError``. ``root`` is an open directory: what is opened from there (by name or by handle) lies on this mount.
    """

    def __init__(self, path: str) -> None:
        flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
        self._tree = check(libc.syscall(_OPEN_TREE, -100, os.fsencode(path), flags), path)
        try:
            self.root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._tree)
        except OSError:
            os.close(self._tree)
            raise

    def close(self) -> None:
        """Unmount it; descriptors of files on it stay good."""
        os.close(self.root)
        os.close(self._tree)


def mount_id(fd: int) -> int:
    """The id of the mount that a descriptor lies on (proc(5), ``fdinfo``); it may be used again when the mount is gone."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        return next(int(line.split()[1]) for line in info if line.startswith(b"mnt_id:"))
