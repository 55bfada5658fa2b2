"""What a program needs to start, read from its first bytes: ELF binaries and scripts. Nothing here opens a file.

ELF as in the generic ABI, "Dynamic Linking"; scripts as execve(2) reads them.
"""

from __future__ import annotations

from itertools import islice
from typing import IO, NamedTuple

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

MAGIC = b"\x7fELF"
SCRIPT = b"#!"
# What a hostile file may claim to have.
_MAX_SEGMENTS = 256
_MAX_TAGS = 4096
_MAX_READS = 20_000
_MAX_READ_BYTES = 1 << 16
_MAX_LINE = 256
_TAGS = {"DT_NEEDED": "needed", "DT_RPATH": "rpath", "DT_RUNPATH": "runpath"}


class Needs(NamedTuple):
    """Names as they stand in the file. ``rpath`` and ``runpath`` are lists of directories with ``$ORIGIN`` and the like.

    ``machine`` is ``e_machine`` as pyelftools calls it (``EM_X86_64``); ``bits`` 32 or 64.
    """

    machine: str
    bits: int
    interpreter: bytes
    libraries: tuple[bytes, ...]
    rpath: tuple[bytes, ...]
    runpath: tuple[bytes, ...]


class _Frugal:
    """A file that can be read so many times and no more: whatever a header claims, parsing ends."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = _MAX_READS
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        """As of a file. Raises ``ValueError`` when it is too much."""
        self._left -= 1
        if self._left < 0 or not 0 <= size <= _MAX_READ_BYTES:
            raise ValueError("this parses for ever")
        return self._stream.read(size)


def needs(stream: IO[bytes]) -> Needs | None:
    """What a binary needs; ``None`` for what is none, is damaged or is linked statically."""
    try:
        return _needs(ELFFile(_Frugal(stream)))  # type: ignore[arg-type]
    except Exception:
        # pyelftools raises whatever its parsing of a damaged or hostile file comes to.
        return None


def _needs(elf: ELFFile) -> Needs | None:
    # As if there were no sections: the dynamic loader does not look at them either, and parsing them costs the most.
    elf.header["e_shoff"] = 0
    interpreter = b""
    libraries: list[bytes] = []
    paths: dict[str, tuple[bytes, ...]] = {}
    for segment in islice(elf.iter_segments(), _MAX_SEGMENTS):
        if isinstance(segment, InterpSegment):
            interpreter = _bytes(segment.get_interp_name())
        elif isinstance(segment, DynamicSegment):
            for tag in islice(segment.iter_tags(), _MAX_TAGS):
                attribute = _TAGS.get(tag.entry.d_tag)
                if attribute is None:
                    continue
                # pyelftools gives a tag with a string an attribute of its own.
                value = _bytes(getattr(tag, attribute))
                if attribute == "needed":
                    libraries.append(value)
                else:
                    paths[attribute] = tuple(part for part in value.split(b":") if part)
    if not interpreter and not libraries:
        return None
    rpath, runpath = paths.get("rpath", ()), paths.get("runpath", ())
    return Needs(elf["e_machine"], elf.elfclass, interpreter, tuple(libraries), rpath, runpath)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def script_interpreter(head: bytes) -> list[bytes]:
    """The words of a script's first line (``/usr/bin/env``, ``python3``); empty where it is no script."""
    if not head.startswith(SCRIPT):
        return []
    line = head[len(SCRIPT) : _MAX_LINE].split(b"\n", 1)[0]
    # The kernel passes all that follows the interpreter as one argument; env(1) with -S takes it apart again.
    return line.split()
