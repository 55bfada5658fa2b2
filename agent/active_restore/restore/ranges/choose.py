"""Which files are restored by range: what the user names, large enough, and readable in parts. Decided once, and kept.

Kept, because a file that was filled by range may hold bytes of users between its holes: nobody else may fill it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from typing import TYPE_CHECKING

from active_restore.errors import ActiveRestoreError
from active_restore.linux import fiemap
from active_restore.marker import SAVED_CAPABILITY
from active_restore.placeholder import open_inode
from active_restore.restore.select import Selection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from active_restore.catalog import Catalog, FileRow
    from active_restore.config import RestoreOptions
    from active_restore.restore.job import Job
    from active_restore.source.base import Source

_FILE = "ranges.json"


def chosen(job: Job, catalog: Catalog, source: Source, mount_fd: int) -> list[FileRow]:
    """What is left of those that were chosen when everything was laid; chosen now where that is not known.

    Raises ``SourceUnavailable``.
    """
    if not job.options.ranges:
        return []
    rows = set(_rows(job.state_dir / _FILE, catalog, job.options, source, mount_fd))
    left = [row for row in catalog.large_rows(job.options.range_threshold_bytes) if row in rows]
    return [file for row in left if (file := catalog.file(row)) is not None]


def _rows(path: Path, catalog: Catalog, options: RestoreOptions, source: Source, mount_fd: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        try:
            return [int(row) for row in json.loads(path.read_text())]
        except (ValueError, TypeError) as error:
            raise ActiveRestoreError(
                f"the state {path} is damaged ({error})", "move its directory away and run resume: state is rebuilt"
            ) from error
    rows = list(_choose(catalog, options, source, mount_fd))
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        json.dump(rows, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    return rows


def _choose(catalog: Catalog, options: RestoreOptions, source: Source, mount_fd: int) -> Iterator[int]:
    wanted = Selection(options.ranges)
    with contextlib.closing(source.reader()) as reader:
        for row in catalog.large_rows(options.range_threshold_bytes):
            file = catalog.file(row)
            if file is not None and wanted(file.ref.path) and reader.bounds(file.ref) is not None and _can(mount_fd, file):
                yield row


def _can(mount_fd: int, file: FileRow) -> bool:
    """Writing takes file capabilities away, so a file that has them is filled as a whole; and extents must be known."""
    fd = open_inode(mount_fd, file.handle)
    if fd is None:
        return False
    try:
        names = os.listxattr(fd)
        list(fiemap.written(fd))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
            raise
        return False
    finally:
        os.close(fd)
    return not {"security.capability", SAVED_CAPABILITY} & set(names)
