"""Reveal: move what was laid from the staging directory to its place, whole subtrees by one rename where nothing is there.

Where a directory exists, its content is merged; a file that exists is replaced atomically (its old inode lives on for
those who have it open); what cannot be replaced without loss (a directory in the place of a file, another file system)
is left alone and reported. Every step can be repeated after an interruption.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING

from active_restore.linux.files import RENAME_EXCHANGE, RENAME_NOREPLACE, rename
from active_restore.marker import MARKER
from active_restore.model import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def reveal(staging: int, target: int, path: bytes = b"") -> Iterator[Problem]:
    """Empty the directory ``staging`` into the directory ``target``; both are descriptors."""
    for name in sorted(os.fsencode(entry) for entry in os.listdir(staging)):
        below = path + b"/" + name if path else name
        try:
            yield from _move(staging, target, name, below)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EISDIR, errno.ENOTDIR, errno.EBUSY, errno.EPERM, errno.EACCES):
                raise
            yield Problem(below, error.errno, _WHY.get(error.errno, os.strerror(error.errno)))


_WHY = {
    errno.EXDEV: "another file system is mounted there; restore it on its own",
    errno.EISDIR: "a directory is in the place of a file; move it away and restore again",
    errno.EBUSY: "something is mounted there",
}


def _move(staging: int, target: int, name: bytes, below: bytes) -> Iterator[Problem]:
    try:
        rename(staging, name, target, name, RENAME_NOREPLACE)
        return
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    ours = os.stat(name, dir_fd=staging, follow_symlinks=False)
    theirs = os.stat(name, dir_fd=target, follow_symlinks=False)
    if stat.S_ISDIR(ours.st_mode) and stat.S_ISDIR(theirs.st_mode):
        yield from _merge(staging, target, name, below)
    elif stat.S_ISDIR(ours.st_mode):
        rename(staging, name, target, name, RENAME_EXCHANGE)
        os.unlink(name, dir_fd=staging)
    elif stat.S_ISDIR(theirs.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fsdecode(below))
    else:
        os.rename(name, name, src_dir_fd=staging, dst_dir_fd=target)


def _merge(staging: int, target: int, name: bytes, below: bytes) -> Iterator[Problem]:
    source = os.open(name, _DIRECTORY, dir_fd=staging)
    try:
        into = os.open(name, _DIRECTORY, dir_fd=target)
        try:
            # Merging changes the times of the staged directory: look first.
            wanted = os.fstat(source)
            problems = list(reveal(source, into, below))
            _copy_metadata(source, wanted, into)
        finally:
            os.close(into)
    finally:
        os.close(source)
    yield from problems
    if not problems:
        os.rmdir(name, dir_fd=staging)
    else:
        with contextlib.suppress(OSError):
            shutil.rmtree(name, dir_fd=staging)


def _copy_metadata(source: int, wanted: os.stat_result, into: int) -> None:
    os.fchown(into, wanted.st_uid, wanted.st_gid)
    os.fchmod(into, stat.S_IMODE(wanted.st_mode))
    for key in os.listxattr(source):
        if key != MARKER:
            with contextlib.suppress(OSError):
                os.setxattr(into, key, os.getxattr(source, key))
    os.utime(into, ns=(wanted.st_atime_ns, wanted.st_mtime_ns))
