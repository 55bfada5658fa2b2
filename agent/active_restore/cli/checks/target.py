"""What the file system of a target offers. Nothing is written to it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from active_restore.cli.checks.finding import PRE_CONTENT, Finding
from active_restore.cli.quantities import size
from active_restore.control.names import shown
from active_restore.errors import CapabilityMissing
from active_restore.intercept.group import check_ranges
from active_restore.intercept.windows import check as check_windows
from active_restore.linux.files import BTRFS_MAGIC, EXT4_MAGIC, XFS_MAGIC, filesystem_magic
from active_restore.linux.handles import HandleMaker, open_handle
from active_restore.marker import MARKER

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUPPORTED = {EXT4_MAGIC: "ext4", XFS_MAGIC: "xfs", BTRFS_MAGIC: "btrfs"}


def findings(target: str) -> Iterator[Finding]:
    """Type, handles, xattrs, ranges, free space of where ``target`` is or would be made."""
    place = existing(target)
    yield _type(place)
    yield _handles(place)
    yield _xattrs(place)
    yield _ranges(place)
    yield _mappings(place)
    yield _space(place)


def existing(target: str) -> str:
    """The directory itself, or the one in which it would be made."""
    place = target
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return place


def _type(place: str) -> Finding:
    magic = filesystem_magic(place)
    name = _SUPPORTED.get(magic)
    return Finding(
        "file system",
        name is not None,
        "any",
        f"{shown(place)} is on {name}" if name else f"{shown(place)} is on a file system of type {magic:#x}",
        "placeholders need stable inodes, trusted xattrs and permission events",
        "restore to ext4, xfs or btrfs",
    )


def _handles(place: str) -> Finding:
    problem = ""
    try:
        directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(open_handle(directory, HandleMaker().of_fd(directory), os.O_PATH))
        finally:
            os.close(directory)
    except OSError as error:
        problem = f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
    return Finding(
        "file handles",
        not problem,
        "any",
        problem or "inodes can be opened by handle",
        "a placeholder is found again however it was renamed",
        "restore to ext4, xfs or btrfs, outside of a user namespace",
    )


def _xattrs(place: str) -> Finding:
    problem = ""
    try:
        os.getxattr(place, MARKER)
    except OSError as error:
        if error.errno != errno.ENODATA:
            problem = f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
    return Finding(
        "trusted xattrs",
        not problem,
        "any",
        problem or "can be kept here",
        "the marker of a placeholder survives a crash and a power cut, and no user can fake it",
        "restore to ext4, xfs or btrfs as root",
    )


def _ranges(place: str) -> Finding:
    problem = ""
    try:
        check_ranges(place)
    except OSError as error:
        problem = f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
    return Finding(
        PRE_CONTENT,
        not problem,
        "advised",
        problem or "accesses come with their range, files can be restored by range (--ranges)",
        "without them only BPF holds truncate(2) by path, and files by range (--ranges)",
        "use kernel 6.14 or newer with ext4, xfs or btrfs, or boot with bpf in lsm=",
    )


def _mappings(place: str) -> Finding:
    problem = ""
    try:
        if filesystem_magic(place) == BTRFS_MAGIC:
            raise CapabilityMissing("on btrfs files of other subvolumes have the same numbers: they would be taken for ours")
        check_windows()
    except CapabilityMissing as error:
        problem = f"{error}"
    return Finding(
        "programs on system calls",
        not problem,
        "advised",
        problem or "who makes a mapping show more of its file is stopped until that is there",
        "with pre-content events who maps a part of a file by range waits just for that part; else to the end of the file",
        "restore to ext4 or xfs, with kernel 5.17 or newer with BTF and the BPF system call, as root",
    )


def _space(place: str) -> Finding:
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    read_only = bool(found.f_flag & os.ST_RDONLY)
    return Finding(
        "free space",
        free > 0 and not read_only,
        "any",
        "mounted read-only" if read_only else f"{size(free)} and {found.f_favail:,} inodes are free",
        "a restore checks that its snapshot fits before it lays anything",
        "make room, or mount it writable",
    )
