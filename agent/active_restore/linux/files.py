"""Calls on files and directories that Python does not offer."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from active_restore.linux.libc import check, libc

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_CLONE_FS = 0x200
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10
_SYS_OPENAT2 = 437
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_BTIME_AT = 80

EXT4_MAGIC = 0xEF53
XFS_MAGIC = 0x58465342
BTRFS_MAGIC = 0x9123683E
TMPFS_MAGIC = 0x01021994
OVERLAY_MAGIC = 0x794C7630

_FS_IOC_GETVERSION = 0x80087601
_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2

libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def generation_of(fd: int) -> int:
    """``i_generation``, which tells an inode from an earlier one with its number."""
    return int(struct.unpack("=I", fcntl.ioctl(fd, _FS_IOC_GETVERSION, bytes(8))[:4])[0])


def rename(source_dir: int, source: bytes, target_dir: int, target: bytes, flags: int) -> None:
    """renameat2(2)."""
    check(libc.renameat2(source_dir, source, target_dir, target, flags), os.fsdecode(target))


def sync_filesystem(fd: int) -> None:
    """syncfs(2): everything dirty on the file system of ``fd`` becomes durable; raises what write-back met."""
    check(libc.syncfs(fd), f"fd {fd}")


def own_description(directory: int) -> int:
    """The same directory, opened anew: syncfs(2) tells each open file description of a failed write-back once."""
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """fallocate(2): give back the blocks of a range; it reads as zeros, the size stays."""
    check(libc.fallocate(fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length), f"fd {fd}")


def private_cwd() -> None:
    """unshare(CLONE_FS): the working directory and umask of this thread are its own from now on."""
    check(libc.unshare(_CLONE_FS), "unshare")


def open_beneath(directory: int, path: bytes, flags: int) -> int:
    """openat2(2) that neither leaves ``directory`` nor follows any symbolic link."""
    return _openat2(directory, path, flags, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)


def open_in_root(directory: int, path: bytes, flags: int) -> int:
    """openat2(2) with ``directory`` as the root: absolute names and symbolic links, and ``..``, stay inside of it."""
    return _openat2(directory, path, flags, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


def _openat2(directory: int, path: bytes, flags: int, resolve: int) -> int:
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    result = libc.syscall(_SYS_OPENAT2, directory, ctypes.c_char_p(path), ctypes.c_char_p(how), ctypes.c_size_t(len(how)))
    return check(result, os.fsdecode(path))


def birth_ns(path: bytes) -> int | None:
    """When the inode was made (statx(2)); ``None`` where the file system does not know."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    found = libc.statx(_AT_FDCWD, ctypes.c_char_p(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer)
    check(found, os.fsdecode(path))
    if not struct.unpack_from("=I", buffer)[0] & _STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _BTIME_AT)
    return int(seconds) * 10**9 + int(nanoseconds)


def filesystem_magic(path: str) -> int:
    """``f_type`` of statfs(2): the magic number of the file system that ``path`` lies on."""
    buffer = ctypes.create_string_buffer(256)
    check(libc.statfs(os.fsencode(path), buffer), path)
    return int(struct.unpack_from("=q", buffer)[0]) & 0xFFFFFFFF
