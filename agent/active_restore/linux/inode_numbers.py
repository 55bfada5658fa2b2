"""From an inode number and its generation to the inode, on file systems whose handles hold just these two.

ext2/3/4 and small xfs: ``FILEID_INO32_GEN`` (number, generation: 32 bits each). xfs: the same type with bit 7 set and a
64-bit number (Linux ``fs/libfs.c``, ``fs/xfs/xfs_export.h``).
"""

from __future__ import annotations

import os
import struct

from active_restore.linux.handles import HandleMaker, open_handle

_TYPE = struct.Struct("=i")
_BODIES = {(1, 8): struct.Struct("=II"), (0x81, 12): struct.Struct("=QI")}


class InodeNumbers:
    """The inodes of one file system by number. Raises ``LookupError`` on construction where its handles are of another kind.

    ``directory`` is a descriptor on that file system, ours until ``close``.
    """

    def __init__(self, directory: str) -> None:
        self.directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        sample = HandleMaker().of_fd(self.directory)
        kind, body = _TYPE.unpack_from(sample)[0], sample[_TYPE.size :]
        layout = _BODIES.get((kind, len(body)))
        if layout is None or layout.unpack(body)[0] != os.fstat(self.directory).st_ino:
            os.close(self.directory)
            raise LookupError(f"file handles of type {kind} with {len(body)} bytes")
        self._kind, self._layout = kind, layout

    def handle(self, inode: int, generation: int) -> bytes:
        """The handle as ``linux.handles`` makes it."""
        return _TYPE.pack(self._kind) + self._layout.pack(inode, generation)

    def open(self, handle: bytes) -> int:
        """An O_PATH descriptor. Raises ESTALE where the inode is gone."""
        return open_handle(self.directory, handle, os.O_PATH)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.directory)
