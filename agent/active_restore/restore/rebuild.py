"""State that was lost: find the placeholders of a restore by their markers and put them into a new catalog."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from active_restore.catalog import FileRow
from active_restore.linux.handles import HandleMaker
from active_restore.marker import MARKER, marker_row
from active_restore.model import FileRef, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from active_restore.catalog import Catalog


def marked_rows(target: str, prefix: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(row, handle, inode number) of every placeholder below ``target``; nothing is opened but directories."""
    handles = HandleMaker()
    stack = [os.fsencode(target)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    row = _row(entry.path, prefix)
                    if row is not None:
                        yield row, handles.of_name(entry.path), entry.inode()


def _row(path: bytes, prefix: bytes) -> int | None:
    try:
        return marker_row(prefix, os.getxattr(path, MARKER, follow_symlinks=False))
    except ValueError:
        return None
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOENT, errno.EOPNOTSUPP):
            return None
        raise


def rebuild(catalog: Catalog, target: str, prefix: bytes, order_key: Callable[[bytes], int]) -> None:
    """Fill the ``file`` table of a catalog that has just been planned again."""

    def found() -> Iterator[tuple[FileRow, int, int]]:
        seen: set[int] = set()
        for row, handle, inode in marked_rows(target, prefix):
            node = catalog.node(row)
            # A second inode with the same row is a copy that a user made with its marker: the first is as good.
            if row in seen or node is None or node.kind is not Kind.FILE:
                continue
            seen.add(row)
            ref = FileRef(node.path, node.size, node.mtime_ns, node.content)
            yield FileRow(row, ref, handle), inode, order_key(node.content)

    catalog.add_files(list(found()))
