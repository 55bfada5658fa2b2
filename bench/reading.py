"""A whole restore by the native reader alone: ``python -m bench.reading SOURCE TARGET WORKERS``.

Files and their metadata as the peer writes them; no placeholder, no guard, no marker, nothing made durable. What
``active-restore restore`` takes longer than this is the price of a system that runs meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from active_restore.model import FileRef, Kind, Node
from active_restore.source.open import attach, open_source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from active_restore.source.base import Handover, Reader

BATCH_FILES = 256
BATCH_BYTES = 16 << 20


def main() -> None:
    """Restore, with worker processes that take every n-th batch."""
    spec, target, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with contextlib.closing(open_source(spec, os.environ)) as source:
        nodes = [item for item in source.walk(source.select("latest")) if isinstance(item, Node) and item.path]
        os.chdir(target)
        directories = [node for node in nodes if node.kind is Kind.DIR]
        for node in directories:
            os.mkdir(node.path)
        files = [node for node in nodes if node.kind is Kind.FILE]
        files.sort(key=lambda node: source.order_key(node.content))
        batches = _batches(files)
        handover = source.handover()
        children = [_in_child(handover, batches[number::workers]) for number in range(workers)]
        for child in children:
            if os.waitpid(child, 0)[1]:
                raise RuntimeError("a worker failed")
        for node in reversed(directories):
            os.utime(node.path, ns=(node.atime_ns, node.mtime_ns))


def _batches(files: Sequence[Node]) -> list[list[Node]]:
    batches: list[list[Node]] = [[]]
    size = 0
    for node in files:
        if len(batches[-1]) == BATCH_FILES or size >= BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(node)
        size += node.size
    return batches


def _in_child(handover: Handover, batches: Sequence[Sequence[Node]]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        with contextlib.closing(attach(handover.recipe, handover.fds).reader()) as reader:
            for batch in batches:
                _restore(reader, batch)
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
    finally:
        os._exit(1)


def _restore(reader: Reader, batch: Sequence[Node]) -> None:
    refs = [FileRef(node.path, node.size, node.mtime_ns, node.content) for node in batch]
    fd = at = -1
    for position, piece in reader.read_many(refs):
        node = batch[position]
        if isinstance(piece, Exception):
            raise piece
        if position != at:
            fd, at = os.open(node.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, node.mode), position
            if piece is None or piece.offset or len(piece.data) != node.size:
                os.ftruncate(fd, node.size)
        if piece is None:
            os.fchown(fd, node.uid, node.gid)
            os.utime(fd, ns=(node.atime_ns, node.mtime_ns))
            os.close(fd)
            at = -1
        else:
            os.pwrite(fd, piece.data, piece.offset)


if __name__ == "__main__":
    main()
