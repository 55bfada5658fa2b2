"""Memory of the index of many blobs: ``python -m bench.indexing compact|naive COUNT``; prints the bytes that it takes."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np

from active_restore.linux.libc import give_back_memory
from active_restore.source.restic.index import IndexBuilder

_BLOBS_OF_A_PACK = 500


def main() -> None:
    """Build one kind of index and see how much larger the process is."""
    kind, count = sys.argv[1], int(sys.argv[2])
    build = {"compact": _compact, "naive": _naive}[kind]
    build(_BLOBS_OF_A_PACK)
    before = _resident()
    index = build(count)
    gc.collect()
    print(_resident() - before)
    assert len(index) == count


def _packs(count: int) -> Any:
    rng = np.random.default_rng(1)
    for start in range(0, count, _BLOBS_OF_A_PACK):
        blobs = min(_BLOBS_OF_A_PACK, count - start)
        places = np.full((blobs, 3), 11_000, np.uint32)
        places[:, 0] = np.arange(blobs) * 11_000
        yield rng.bytes(32), rng.bytes(32 * blobs), places


def _compact(count: int) -> Any:
    """As ``IndexLoader.load`` does it; every page of the result is touched, so that it counts."""
    builder = IndexBuilder()
    for pack, ids, places in _packs(count):
        builder.add(pack, ids, places)
    index = builder.build()
    del builder
    give_back_memory()
    for part in (index.keys, index.entries, index.tails):
        part.sum()
    give_back_memory()
    return index


def _naive(count: int) -> Any:
    found = {}
    for pack, ids, places in _packs(count):
        for number, place in enumerate(places.tolist()):
            found[ids[32 * number : 32 * number + 32]] = (pack, *place)
    return found


def _resident() -> int:
    """Bytes, shared memory included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
