"""Where the dynamic loader of the target would find a library: ld.so(8), with the target's own cache and configuration.

Format of ld.so.cache: glibc, ``sysdeps/generic/dl-cache.h`` (struct cache_file_new). Files of the target that are not
restored yet are left out, never waited for.
"""

from __future__ import annotations

import fnmatch
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from active_restore.predict.elf import Needs
    from active_restore.predict.tree import Look, Tree

CACHE = b"/etc/ld.so.cache"
_CONF = b"/etc/ld.so.conf"
_MAGIC = b"glibc-ld.so.cache1.1"
_HEADER = struct.Struct("=20sIIB3xI12x")
_ENTRY = struct.Struct("=iIIIQ")
_MAX_ENTRIES = 1 << 17
_MAX_BYTES = 16 << 20
_MAX_CONF_BYTES = 1 << 16
_MAX_INCLUDES = 8
# Flags of libraries in the cache, less the kind of libc (glibc, sysdeps/generic/ldconfig.h).
_ARCHITECTURES = {"EM_X86_64": 0x0300, "EM_AARCH64": 0x0A00, "EM_386": 0x0000, "EM_S390": 0x0400, "EM_PPC64": 0x0500}
_TRIPLES = {
    "EM_X86_64": b"x86_64-linux-gnu",
    "EM_AARCH64": b"aarch64-linux-gnu",
    "EM_386": b"i386-linux-gnu",
    "EM_S390": b"s390x-linux-gnu",
    "EM_PPC64": b"powerpc64le-linux-gnu",
    "EM_RISCV": b"riscv64-linux-gnu",
}
Cache = dict[tuple[bytes, int], list[bytes]]


def parse_cache(data: bytes) -> Cache:
    """(name, architecture flags) -> paths, best first. Raises ``ValueError`` for what is no cache."""
    base = data.find(_MAGIC)
    if base < 0 or len(data) < base + _HEADER.size:
        raise ValueError("no ld.so.cache")
    count = _HEADER.unpack_from(data, base)[1]
    if count > _MAX_ENTRIES or base + _HEADER.size + count * _ENTRY.size > len(data):
        raise ValueError("a damaged ld.so.cache")
    found: Cache = {}
    for number in range(count):
        flags, key, value, _, _ = _ENTRY.unpack_from(data, base + _HEADER.size + number * _ENTRY.size)
        name, path = _text(data, base + key), _text(data, base + value)
        if name and path:
            found.setdefault((name, flags & 0xFF00), []).append(path)
    return found


def _text(data: bytes, at: int) -> bytes:
    return data[at : max(data.find(b"\0", at), at)]


class Loader:
    """The search, with the cache and the configuration of one target as far as they are restored."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._cache: Cache | None = None
        self._conf: list[bytes] | None = None

    def libraries(self, binary: Needs, origin: bytes, inherited: Sequence[bytes]) -> Iterator[bytes]:
        """The paths of the libraries of a binary in the directory ``origin``; ``inherited`` are its loaders' RPATHs."""
        for name in binary.libraries:
            path = self._find(name, binary, origin, inherited)
            if path:
                yield path

    def _find(self, name: bytes, binary: Needs, origin: bytes, inherited: Sequence[bytes]) -> bytes:
        if b"/" in name:
            return expand(name, binary, origin)
        for path in self._places(name, binary, origin, inherited):
            with self._tree.look(path) as found:
                if found is not None:
                    return path
        return b""

    def _places(self, name: bytes, binary: Needs, origin: bytes, inherited: Sequence[bytes]) -> Iterator[bytes]:
        own = binary.runpath or (*binary.rpath, *inherited)
        for directory in own:
            yield os.path.join(expand(directory, binary, origin), name)
        yield from self._cached().get((name, _ARCHITECTURES.get(binary.machine, -1)), ())
        triple = _TRIPLES.get(binary.machine, b"")
        wide = b"lib64" if binary.bits == 64 else b"lib32"
        below = (b"/lib/" + triple, b"/usr/lib/" + triple, b"/" + wide, b"/usr/" + wide, b"/lib", b"/usr/lib")
        for directory in (*self._configured(), *below):
            yield os.path.join(directory, name)

    def _cached(self) -> Cache:
        """Read once, as soon as it is there."""
        if self._cache is None:
            with self._tree.look(CACHE) as found:
                if found is None:
                    self._cache = {}
                elif not found.missing:
                    try:
                        self._cache = parse_cache(_content(found, _MAX_BYTES))
                    except ValueError:
                        self._cache = {}
        return self._cache or {}

    def _configured(self) -> list[bytes]:
        if self._conf is None:
            with self._tree.look(_CONF) as found:
                if found is not None and found.missing:
                    return []
            self._conf = list(self._read_conf(_CONF, 0))
        return self._conf

    def _read_conf(self, path: bytes, depth: int) -> Iterator[bytes]:
        """ldconfig(8): a directory a line, comments with ``#``, ``include PATTERN``."""
        with self._tree.look(path) as found:
            if found is None or found.missing or depth > _MAX_INCLUDES:
                return
            text = _content(found, _MAX_CONF_BYTES)
        for line in text.split(b"\n"):
            words = line.split(b"#", 1)[0].split()
            if len(words) == 2 and words[0] == b"include":
                directory, _, pattern = os.path.join(os.path.dirname(path), words[1]).rpartition(b"/")
                for name in self._tree.names(directory):
                    if fnmatch.fnmatchcase(name, pattern):
                        yield from self._read_conf(os.path.join(directory, name), depth + 1)
            elif words and words[0].startswith(b"/"):
                yield words[0]


def expand(path: bytes, binary: Needs, origin: bytes) -> bytes:
    """Dynamic string tokens of ld.so(8); ``$PLATFORM`` is left as it is, nothing lies there."""
    lib = b"lib/" + _TRIPLES[binary.machine] if binary.machine in _TRIPLES else b"lib"
    for token, value in ((b"ORIGIN", origin), (b"LIB", lib)):
        path = path.replace(b"$" + token, value).replace(b"${" + token + b"}", value)
    return os.path.normpath(path)


def _content(found: Look, most: int) -> bytes:
    with found.open() as file:
        return file.read(most)
