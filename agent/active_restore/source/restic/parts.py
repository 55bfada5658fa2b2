"""Where the blobs of a file begin, as the index tells it; reading them proves it."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from active_restore.source.restic.batch import MAX_DATA_BLOB_BYTES

if TYPE_CHECKING:
    from active_restore.model import FileRef
    from active_restore.source.restic.index import BlobIndex


def bounds(index: BlobIndex, ref: FileRef) -> array[int] | None:
    """Offsets of all blobs and the end of the file, 8 bytes for each; ``None`` where one is unknown or hostile."""
    rows = index.rows(ref.content)
    if not len(rows) or int(rows.min()) < 0:
        return None
    entries = index.entries[rows].astype(np.int64)
    sizes = np.where(entries[:, 3] > 0, entries[:, 3], entries[:, 2] - 32)
    ends = np.cumsum(sizes)
    if int(sizes.min()) <= 0 or int(sizes.max()) > MAX_DATA_BLOB_BYTES or int(ends[-1]) != ref.size:
        return None
    return array("q", np.concatenate([[0], ends]).astype(np.int64).tobytes())
