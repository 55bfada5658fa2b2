"""How fast a source is read in one process: ``bench/source_read.py restic:/path`` or ``dir:/path`` (passwords as usual).

Prints one JSON object: seconds to open and to walk, files and MB per second of ``read_many`` in batches of 256 files or
16 MiB, milliseconds of single reads; for restic also bytes of index for each blob and microseconds of a look-up.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from active_restore.errors import ContentError
from active_restore.model import FileRef, Kind, Node, Piece
from active_restore.source.open import open_source
from active_restore.source.restic.repository import ResticSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from active_restore.source.base import Source

BATCH_FILES = 256
BATCH_BYTES = 16 << 20
SINGLE_READS = 300


def main() -> None:
    """Measure the source that is named on the command line."""
    started = time.perf_counter()
    source = open_source(sys.argv[1], os.environ)
    opened = time.perf_counter()
    nodes = [item for item in source.walk(source.select("latest")) if isinstance(item, Node)]
    walked = time.perf_counter()
    refs = [
        FileRef(node.path, node.size, node.mtime_ns, node.content) for node in nodes if node.kind is Kind.FILE and node.size
    ]
    refs.sort(key=lambda ref: source.order_key(ref.content))
    figures: dict[str, Any] = {
        "open_s": round(opened - started, 3),
        "walk_s": round(walked - opened, 3),
        "walk_nodes_per_s": round(len(nodes) / (walked - opened)),
    }
    print(json.dumps(figures | _bulk(source, refs) | _single(source, refs) | _index(source, refs), indent=1))
    source.close()


def _bulk(source: Source, refs: list[FileRef]) -> dict[str, Any]:
    reader = source.reader()
    total = refused = 0
    started = time.perf_counter()
    for batch in _batches(refs):
        for _, item in reader.read_many(batch):
            if isinstance(item, Piece):
                total += len(item.data)
            elif isinstance(item, ContentError):
                refused += 1
    seconds = time.perf_counter() - started
    reader.close()
    return {
        "files": len(refs),
        "refused": refused,
        "mb": round(total / 1e6),
        "files_per_s": round(len(refs) / seconds),
        "mb_per_s": round(total / 1e6 / seconds),
    }


def _batches(refs: list[FileRef]) -> Iterator[list[FileRef]]:
    batch: list[FileRef] = []
    size = 0
    for ref in refs:
        batch.append(ref)
        size += ref.size
        if len(batch) == BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _single(source: Source, refs: list[FileRef]) -> dict[str, Any]:
    reader = source.reader()
    small = [ref for ref in refs if ref.size <= 1 << 20]
    times = []
    for ref in small[:: max(1, len(small) // SINGLE_READS)]:
        started = time.perf_counter()
        for _ in reader.read(ref):
            pass
        times.append((time.perf_counter() - started) * 1e3)
    reader.close()
    if len(times) < 2:
        return {}
    return {"read_p50_ms": round(statistics.median(times), 3), "read_p99_ms": round(statistics.quantiles(times, n=100)[98], 3)}


def _index(source: Source, refs: list[FileRef]) -> dict[str, Any]:
    if not isinstance(source, ResticSource):
        return {}
    index = source.index
    ids = [ref.content[:32] for ref in refs]
    started = time.perf_counter()
    for blob_id in ids:
        index.find(blob_id)
    seconds = time.perf_counter() - started
    size = os.fstat(index.descriptor).st_size
    return {
        "blobs": len(index),
        "index_bytes_per_blob": round(size / max(len(index), 1), 1),
        "lookup_us": round(seconds / max(len(ids), 1) * 1e6, 2),
    }


if __name__ == "__main__":
    main()
