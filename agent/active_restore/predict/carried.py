"""The recorded order that a snapshot carries, or that the user names, as rows of the restore."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.errors import ActiveRestoreError, UsageError
from active_restore.predict import order

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from active_restore.catalog import Catalog
    from active_restore.predict.order import Stretch, Touch
    from active_restore.predict.tree import Tree
    from active_restore.source.base import Source

_MAX_TOUCHES = 100_000


def find(named: str, tree: Tree, catalog: Catalog, source: Source) -> Sequence[Touch]:
    """What was recorded, from the file ``named`` or else from the snapshot's own; empty where there is none.

    Raises ``ActiveRestoreError`` and ``OSError`` where it cannot be had.
    """
    if named:
        return load(named).touches[:_MAX_TOUCHES]
    content = _carried(tree, catalog, source)
    if content is None:
        return ()
    try:
        return order.decode(content).touches[:_MAX_TOUCHES]
    except ValueError as error:
        raise ActiveRestoreError(str(error)) from error


def rows(touches: Iterable[Touch], tree: Tree) -> dict[int, Sequence[Stretch]]:
    """Missing files in the order in which they were used, and which ranges of them were, where that is known."""
    found: dict[int, Sequence[Stretch]] = {}
    for touch in touches:
        with contextlib.suppress(OSError), tree.look(b"/" + touch.path) as file:
            if file is not None and file.missing:
                found.setdefault(file.row, touch.ranges)
    return found


def load(path: str) -> order.Order:
    """A recorded order in a file. Raises ``UsageError`` where it is none."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(order.MAX_BYTES)
        return order.decode(content)
    except OSError as error:
        raise UsageError(f"the order {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}", "make one with: active-restore record start") from error


def _carried(tree: Tree, catalog: Catalog, source: Source) -> bytes | None:
    with tree.look(b"/" + order.FILE_NAME) as found:
        if found is None or found.size > order.MAX_BYTES:
            return None
        if not found.missing:
            with found.open() as file:
                return file.read(order.MAX_BYTES)
        file_row = catalog.file(found.row)
    if file_row is None:
        return None
    content = bytearray(file_row.ref.size)
    with contextlib.closing(source.reader()) as reader:
        for piece in reader.read(file_row.ref):
            content[piece.offset : piece.offset + len(piece.data)] = piece.data
    return bytes(content)
