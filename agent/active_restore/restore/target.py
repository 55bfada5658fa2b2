"""The target: what must be true before anything is laid, each with its own clear error."""

from __future__ import annotations

import errno
import os

from active_restore.errors import CapabilityMissing, NoSpace, TargetError
from active_restore.linux.files import (
    BTRFS_MAGIC,
    EXT4_MAGIC,
    OVERLAY_MAGIC,
    TMPFS_MAGIC,
    XFS_MAGIC,
    filesystem_magic,
)
from active_restore.placeholder import STAGING_PREFIX

_SUPPORTED = {EXT4_MAGIC: "ext4", XFS_MAGIC: "xfs", BTRFS_MAGIC: "btrfs"}
_UNSUPPORTED = {TMPFS_MAGIC: "tmpfs", OVERLAY_MAGIC: "overlayfs"}
_MAY_BE_THERE = frozenset({"lost+found"})
# What an inode and its directory entry take, roughly; ext4 has its inodes already.
_ENTRY_BYTES = 512


def need_root() -> None:
    """Raises ``CapabilityMissing`` for anybody else."""
    if os.geteuid() != 0:
        raise CapabilityMissing("this needs root (CAP_SYS_ADMIN)", "run it with sudo")


def prepare(target: str) -> None:
    """Make the target directory if it is missing; check its file system. Raises ``TargetError``."""
    try:
        os.makedirs(target, exist_ok=True)
        if not os.path.isdir(target):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), target)
    except OSError as error:
        hint = "remount it read-write" if error.errno == errno.EROFS else "choose a directory that can be made"
        raise TargetError(f"the target {target} cannot be used: {error.strerror}", hint) from error
    magic = filesystem_magic(target)
    if magic not in _SUPPORTED:
        name = _UNSUPPORTED.get(magic, f"type {magic:#x}")
        raise TargetError(
            f"the target {target} lies on {name}, where tasks cannot be held", "use a directory on ext4, xfs or btrfs"
        )
    if os.statvfs(target).f_flag & os.ST_RDONLY:
        raise TargetError(f"the target {target} is on a read-only file system", "remount it read-write")


def check_empty(target: str) -> None:
    """Raises ``TargetError`` where something is there that a restore could touch."""
    found = [name for name in os.listdir(target) if name not in _MAY_BE_THERE]
    staging = [name for name in found if name.startswith(STAGING_PREFIX)]
    if staging:
        raise TargetError(
            f"the target {target} holds what another restore left ({staging[0]})",
            "finish it with: active-restore resume; or remove that directory",
        )
    if found:
        raise TargetError(
            f"the target {target} is not empty",
            "use --existing metadata (or content) to keep what matches the snapshot and replace what differs",
        )


class Room:
    """What is free on the file system of the target, as it was before anything was laid."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._free = os.statvfs(target)

    def check(self, entries: int, size: int) -> None:
        """Raises ``NoSpace`` where so many entries with so many bytes of content do not fit."""
        room = self._free.f_bfree * self._free.f_frsize
        needed = size + entries * _ENTRY_BYTES
        if needed > room:
            raise NoSpace(
                f"{self._target} needs at least {needed / 1e9:.2f} GB and has {room / 1e9:.2f} GB free",
                "free some room, or use --exclude",
            )
        if self._free.f_files and self._free.f_ffree < entries:
            raise NoSpace(
                f"{self._target} needs at least {entries} inodes and has {self._free.f_ffree} free",
                "free some room, or use --exclude",
            )
