"""Which file system a path is on, as the kernel counts them: one superblock, whatever is mounted from it where."""

from __future__ import annotations

import os
from pathlib import Path


def superblock(path: str) -> str:
    """``major:minor`` of the superblock. Source: proc(5), ``mountinfo``; stat(2) tells btrfs subvolumes apart, this does not.

    Nothing is opened in the sense of fanotify (O_PATH). Raises ``OSError``.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        told = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    mount = next(line.split()[1] for line in told.splitlines() if line.startswith("mnt_id:"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[0] == mount:
            return words[2]
    raise FileNotFoundError(2, "its mount is not listed", path)
