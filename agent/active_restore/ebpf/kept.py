"""Compiled programs that are kept, so that only the first start on a kernel waits for a compiler.

Whoever may write them says what the kernel runs: a directory that others may write to is not used. A file that is not whole (a
power cut, a placeholder of a restore of the whole machine) counts as not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.config import cache_root
from active_restore.ebpf.objects import Object

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUFFIX = ".program"
_FORGOTTEN_AFTER_S = 90 * 86400


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """Where programs and headers are kept; a directory for the moment where they cannot be."""
    place = cache_root()
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_ours(place) and os.access(place, os.W_OK):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="active-restore-") as moment:
        yield Path(moment)


def find(place: Path, key: str) -> Object | None:
    """The program with this key, or ``None``."""
    path = place / f"{key}{_SUFFIX}"
    try:
        data = path.read_bytes()
    except OSError:
        return None
    payload = data[hashlib.sha256().digest_size :]
    if not payload or hashlib.sha256(payload).digest() != data[: -len(payload)]:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return Object.unpack(payload)


def keep(place: Path, key: str, program: Object) -> None:
    """Keep it, and forget what was not used for a long time. Nothing happens where there is no room."""
    payload = program.pack()
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(dir=place, prefix="new-", suffix=_SUFFIX, delete=False) as file:
            try:
                file.write(hashlib.sha256(payload).digest() + payload)
                file.flush()
                os.rename(file.name, place / f"{key}{_SUFFIX}")
            except BaseException:
                os.unlink(file.name)
                raise
        forgotten = time.time() - _FORGOTTEN_AFTER_S
        for path in place.glob(f"*{_SUFFIX}"):
            if path.stat().st_mtime < forgotten:
                path.unlink()
        for path in place.glob("headers-*"):
            if path.stat().st_mtime < forgotten:
                shutil.rmtree(path)


def _is_ours(place: Path) -> bool:
    try:
        found = os.lstat(place)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
