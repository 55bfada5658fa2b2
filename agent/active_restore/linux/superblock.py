"""The UUID of a mounted file system, as the kernel keeps it in memory (``s_uuid`` of its superblock)."""

from __future__ import annotations

import fcntl
import os
import struct

UUID_BYTES = 16
# linux/fs.h (6.9 and later): length, UUID. fs/ext4/ext4.h (6.0): length, flags, UUID. xfs_fs.h, version 1: 112 bytes.
_FS_IOC_GETFSUUID = 0x80111500
_EXT4_IOC_GETFSUUID = 0x8008662C
_XFS_IOC_FSGEOMETRY_V1 = 0x80705864
_XFS_GEOMETRY_BYTES, _XFS_UUID_AT = 112, 64
_EXT4_HEAD = struct.Struct("=II")


def uuid(directory: str) -> bytes:
    """Of the file system on which ``directory`` lies. Raises ``OSError`` where it has none that can be asked for."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for ask in (_by_any, _by_ext4):
            try:
                return ask(fd)
            except OSError:
                continue
        return _by_xfs(fd)
    finally:
        os.close(fd)


def _by_any(fd: int) -> bytes:
    told = fcntl.ioctl(fd, _FS_IOC_GETFSUUID, bytes(1 + UUID_BYTES))
    if told[0] != UUID_BYTES:
        raise OSError(95, "its UUID is of another length")
    return told[1:]


def _by_ext4(fd: int) -> bytes:
    told = fcntl.ioctl(fd, _EXT4_IOC_GETFSUUID, _EXT4_HEAD.pack(UUID_BYTES, 0) + bytes(UUID_BYTES))
    return told[_EXT4_HEAD.size :]


def _by_xfs(fd: int) -> bytes:
    told = fcntl.ioctl(fd, _XFS_IOC_FSGEOMETRY_V1, bytes(_XFS_GEOMETRY_BYTES))
    return told[_XFS_UUID_AT : _XFS_UUID_AT + UUID_BYTES]
