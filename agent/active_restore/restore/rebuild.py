"""State that was lost: find the placeholders of a restore by their markers and put them into a new catalog."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from active_restore.errors import ActiveRestoreError
from active_restore.linux.files import birth_ns
from active_restore.linux.handles import HandleMaker
from active_restore.marker import MARKER, marker_row, marker_value
from active_restore.model import Kind, Problem
from active_restore.restore.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from active_restore.catalog import Catalog, RawFile
    from active_restore.model import Node


def marked_rows(target: str, prefix: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """(row, handle, inode number, size) of every placeholder below ``target``; nothing is opened but directories.

    The size is -1 where somebody has changed it since it was laid (truncate(2)).

    Other devices are left alone: snapshots of btrfs, which hold placeholders with the same rows.
    """
    handles = HandleMaker()
    device = os.stat(target).st_dev
    stack = [os.fsencode(target)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.stat(follow_symlinks=False).st_dev != device:
                        continue
                    stack.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    value = _marker(entry.path)
                    if value.startswith(prefix):
                        yield from _placeholder(entry, value, prefix, handles.of_name(entry.path))


def is_copied(target: str, prefix: bytes) -> bool:
    """Whether any marker there was made for another inode: a snapshot of btrfs, a copy by cp(1)."""
    handles = HandleMaker()
    for folder, _, names in os.walk(os.fsencode(target)):
        for path in (os.path.join(folder, name) for name in names):
            value = b"" if os.path.islink(path) else _marker(path)
            if value.startswith(prefix):
                with contextlib.suppress(ValueError):
                    if value != marker_value(prefix, marker_row(prefix, value), handles.of_name(path)):
                        return True
    return False


def _placeholder(
    entry: os.DirEntry[bytes], value: bytes, prefix: bytes, handle: bytes
) -> Iterator[tuple[int, bytes, int, int]]:
    """The entry, unless its marker is broken or was copied from another inode: a copy is the user's own file."""
    try:
        row = marker_row(prefix, value)
    except ValueError:
        return
    if value == marker_value(prefix, row, handle):
        found = entry.stat(follow_symlinks=False)
        born = birth_ns(entry.path)
        changed = born is not None and found.st_mtime_ns >= born
        yield row, handle, entry.inode(), -1 if changed else found.st_size


def _marker(path: bytes) -> bytes:
    try:
        return os.getxattr(path, MARKER, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOENT, errno.EOPNOTSUPP):
            return b""
        raise


def rebuild(
    catalog: Catalog,
    target: str,
    prefix: bytes,
    nodes: Iterable[Node | Problem],
    order_key: Callable[[bytes], int],
    *,
    immutable: bool,
) -> None:
    """Fill an empty catalog: the rows that are still marked, out of all rows of the walk.

    Raises ``ActiveRestoreError`` where the walk is not the one that the markers were made of (a directory that has changed;
    where that is ``immutable``, another size is a user's, whatever time the clock gave it).
    """
    marked: dict[int, tuple[bytes, int, int]] = {}
    for row, handle, inode, size in marked_rows(target, prefix):
        marked[row] = (handle, inode, size)
    rows = 0
    problems: list[Problem] = []
    root: list[tuple[int, Node, bool]] = []

    def found() -> Iterator[tuple[RawFile, int, int]]:
        nonlocal rows
        for item in Plan(lambda _: False).number(nodes):
            if isinstance(item, Problem):
                problems.append(item)
                continue
            row, node, _ = item
            rows = row + 1
            if not node.path:
                root.append((row, node, False))
            if row in marked:
                handle, inode, size = marked.pop(row)
                if node.kind is not Kind.FILE or (not immutable and size not in (-1, node.size)):
                    raise _another_walk(node.path)
                raw = (row, node.path, node.size, node.mtime_ns, node.content, handle)
                yield raw, inode, order_key(node.content)

    catalog.add_files(found())
    catalog.add_nodes(root)
    if marked:
        raise _another_walk(b"")
    for problem in problems:
        catalog.add_problem(problem)
    catalog.end_plan(rows)


def _another_walk(path: bytes) -> ActiveRestoreError:
    where = f" (see {os.fsdecode(path)})" if path else ""
    return ActiveRestoreError(
        f"the state is lost, and the source is not what it was when the restore began{where}",
        "bring the source back as it was; files that are not restored yet stay guarded. Or, if that file was truncated since:"
        " remove it",
    )
