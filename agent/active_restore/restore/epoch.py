"""How far a target has come, told by the target itself: one that was put back to an older state is found out.

A snapshot of a machine or of LVM, or an image, may be put back under the target's path while our state stays. Then the
catalog says settled where the disk has a placeholder again, and to take the markers away would leave zeros. So the root of the
target carries the epoch: a random word of the agent that works on it, and a number that grows with each batch of files, written
when their content is durable and before the catalog knows of them. What the catalog learned under later numbers than the
target's, or everything, where that is of another life, is looked at: what has a marker is a placeholder.

Nothing waits for this record to become durable. Where it lags behind, after a power cut, or because there was no room for it,
more is looked at than need be.

It also tells for which inode it was made: the root of a snapshot of btrfs, or of a copy, is another one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import zlib
from typing import TYPE_CHECKING

import msgpack

from active_restore.catalog import Epoch
from active_restore.linux.handles import HandleMaker, open_handle
from active_restore.marker import EPOCH, MARKER, marker_value

if TYPE_CHECKING:
    from active_restore.catalog import Catalog

_LIFE_BYTES = 8


def begin(catalog: Catalog, root: int) -> None:
    """A new life, on the target (``root`` is a descriptor) and in the catalog. In this order: see ``is_as_far``."""
    inode = _inode(root)

    def tell(epoch: Epoch) -> None:
        # No room, or read-only: then the next agent looks at more.
        with contextlib.suppress(OSError):
            os.setxattr(root, EPOCH, msgpack.packb([epoch.life, epoch.number, inode]))

    life = secrets.token_bytes(_LIFE_BYTES)
    tell(Epoch(life, catalog.epoch.number))
    with contextlib.suppress(OSError):
        os.fsync(root)
    catalog.begin_life(life, tell)


def is_as_far(catalog: Catalog, root: int) -> bool:
    """Whether all that the catalog says of settled files is true of this disk for certain."""
    return catalog.epoch.number <= _number(catalog, root)


def look_again(catalog: Catalog, root: int, prefix: bytes) -> None:
    """What is not certain: rows whose marker is there are unrestored again. Opens nothing, so no guard is asked."""
    concluded = catalog.concluded_after(_number(catalog, root))
    catalog.take_back([row for row, handle in concluded if _marker(root, handle) == marker_value(prefix, row, handle)])


def _marker(root: int, handle: bytes) -> bytes:
    try:
        inode = open_handle(root, handle, os.O_PATH)
        try:
            return os.getxattr(f"/proc/self/fd/{inode}", MARKER)
        finally:
            os.close(inode)
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.ENODATA):
            raise
        return b""


def _number(catalog: Catalog, root: int) -> int:
    """Up to which number the catalog can be believed; -1: nothing."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        life, number, _ = msgpack.unpackb(os.getxattr(root, EPOCH))
        if life == catalog.epoch.life:
            return int(number)
    return -1


def is_copied(root: str) -> bool:
    """Whether this directory has the record of another one."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return bool(msgpack.unpackb(os.getxattr(root, EPOCH))[2] != _inode(fd))
        finally:
            os.close(fd)
    return False


def _inode(root: int) -> int:
    return zlib.crc32(HandleMaker().of_fd(root))
