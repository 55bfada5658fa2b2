"""File handles: an inode's name that survives renames. One value holds the type (4 bytes) and the handle's bytes."""

from __future__ import annotations

import ctypes
import os
import struct

from active_restore.linux.libc import check, libc

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_MAX_BYTES = 128
# struct file_handle: handle_bytes, handle_type, and then the handle itself.
_LENGTH_BYTES = 4
_HEADER_BYTES = 8

libc.name_to_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
libc.open_by_handle_at.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]


class HandleMaker:
    """Makes handles with one buffer; one instance per thread."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(_HEADER_BYTES + _MAX_BYTES)
        self._bytes = memoryview(self._buffer).cast("B")
        self._length = ctypes.c_uint.from_buffer(self._buffer)
        self._address = ctypes.addressof(self._buffer)
        self._mount = ctypes.c_int()
        self._mount_address = ctypes.addressof(self._mount)

    def of_name(self, name: bytes, directory: int = _AT_FDCWD) -> bytes:
        """The handle of ``name`` in ``directory``; a symbolic link is not followed."""
        return self._make(directory, name, 0)

    def of_fd(self, fd: int) -> bytes:
        """The handle of an open (or O_PATH) descriptor."""
        return self._make(fd, b"", _AT_EMPTY_PATH)

    def _make(self, directory: int, name: bytes, flags: int) -> bytes:
        self._length.value = _MAX_BYTES
        if libc.name_to_handle_at(directory, name, self._address, self._mount_address, flags) < 0:
            check(-1, os.fsdecode(name))
        return bytes(self._bytes[_LENGTH_BYTES : _HEADER_BYTES + self._length.value])


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2) through the mount that ``mount_fd`` lies on. Raises ESTALE where the inode is gone."""
    raw = struct.pack("=I", len(handle) - 4) + handle
    return check(libc.open_by_handle_at(mount_fd, raw, flags | os.O_CLOEXEC), "open_by_handle_at")
