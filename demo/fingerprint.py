"""A tree as one value for each name: two trees are identical when their fingerprints are equal. Knows nothing of restoring."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK_BYTES = 1 << 20

Fingerprint = dict[str, tuple[object, ...]]


def fingerprint(root: Path) -> Fingerprint:
    """By path: type and permissions, owner, size, time of change, device, links, attributes, and SHA-256 of the content."""
    top = os.fspath(root)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(pool.map(lambda path: (os.path.relpath(path, top), _of(path)), _paths(top), chunksize=1))


def _paths(top: str) -> Iterator[str]:
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            yield os.path.join(directory, name)


def _of(path: str) -> tuple[object, ...]:
    found = os.lstat(path)
    content = ""
    if stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(found.st_mode):
        content = _digest(path)
    attributes = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in _attributes(path))
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    links = 0 if stat.S_ISDIR(found.st_mode) else found.st_nlink
    return found.st_mode, found.st_uid, found.st_gid, size, found.st_mtime_ns, found.st_rdev, links, attributes, content


def _attributes(path: str) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def differing(one: Fingerprint, other: Fingerprint) -> list[str]:
    """Paths that are not equal in both."""
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))
