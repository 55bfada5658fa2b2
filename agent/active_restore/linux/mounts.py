"""Which file system a path is on, as the kernel counts them: one superblock, whatever is mounted from it where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.linux.tasks import has_open

if TYPE_CHECKING:
    from collections.abc import Iterator


def superblock(path: str) -> str:
    """``major:minor`` of the superblock. Source: proc(5), ``mountinfo``; stat(2) tells btrfs subvolumes apart, this does not.

    Nothing is opened in the sense of fanotify (O_PATH). Raises ``OSError``.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mount = _mount_of(fd)
    finally:
        os.close(fd)
    for words in _listed("self"):
        if words[0] == mount:
            return words[2]
    raise FileNotFoundError(2, "its mount is not listed", path)


def is_for_others(fd: int, tid: int) -> bool:
    """Whether the thread ``tid`` opened ``fd`` for a file system above, whose users may map it without anybody being asked.

    That is so on a mount that neither we nor it can see (overlayfs), and where it serves FUSE (FUSE_PASSTHROUGH).
    Raises ``OSError``.
    """
    mount, theirs = _mount_of(fd), list(_listed(str(tid)))
    if not any(words[0] == mount for who in (theirs, _listed("self")) for words in who):
        return True
    return any(" - fuse" in words[-1] for words in theirs) and has_open(tid, "/dev/fuse")


def _mount_of(fd: int) -> str:
    told = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return next(line.split()[1] for line in told.splitlines() if line.startswith("mnt_id:"))


def _listed(who: str) -> Iterator[list[str]]:
    for line in Path(f"/proc/{who}/mountinfo").read_text().splitlines():
        yield line.split(maxsplit=3)
