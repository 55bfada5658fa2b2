"""Compiled programs as bytes: made once by the compiler, kept, and loaded for each target without it.

What differs from target to target is no part of them: sizes of maps, and the numbers of ``enum loaded`` (``bpf/events.h``).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, Self

import msgpack

from active_restore.ebpf import abi, maps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT = 1
"""Changes with what ``pack`` writes and with how code is read."""
INSTRUCTION = struct.Struct("=BBhi")
WIDE = 0x18
"""The code of the instruction that loads 64 bits; it takes two places, and the second one holds the upper half."""
PSEUDO_MAP = 1


class Table(NamedTuple):
    """A map. ``kind`` and ``flags`` as in uapi/linux/bpf.h; ``inner``: which table its elements are like, or -1."""

    name: str
    kind: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int
    inner: int


class Function(NamedTuple):
    """A program. ``tables``: (instruction, index of the table that it names); ``numbers``: (instruction, of ``enum loaded``).

    ``hook`` is the id of the function that it is attached to in the kernel's BTF, 0 for a tracepoint.
    """

    name: str
    code: bytes
    tables: Sequence[tuple[int, int]]
    numbers: Sequence[tuple[int, int]]
    hook: int = 0

    def linked(self, fds: Sequence[int], numbers: Mapping[int, int]) -> bytes:
        """The code with the descriptors of its maps and its numbers. Raises ``KeyError`` for a number that is not given."""
        code = bytearray(self.code)
        for at, index in self.tables:
            _set_wide(code, at, fds[index])
        for at, which in self.numbers:
            _set_wide(code, at, numbers[which])
        return bytes(code)


class Object(NamedTuple):
    """All of ``bpf/<name>.bpf.c``. A table comes behind the one that its elements are like."""

    tables: Sequence[Table]
    functions: Sequence[Function]
    licence: bytes

    def pack(self) -> bytes:
        """As bytes."""
        return bytes(msgpack.packb(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The reverse of ``pack``."""
        tables, functions, licence = msgpack.unpackb(data, use_list=False)
        return cls([Table(*table) for table in tables], [Function(*function) for function in functions], licence)


def read_function(name: str, code: bytes, tables: Mapping[int, int]) -> Function:
    """A function as the compiler left it. ``tables``: descriptor -> index."""
    known = {value for constant, value in abi.load().constants.items() if constant.startswith("LOADED_")}
    found: list[tuple[int, int]] = []
    numbers: list[tuple[int, int]] = []
    at = 0
    while at < len(code) // INSTRUCTION.size:
        kind, registers, _, low = INSTRUCTION.unpack_from(code, at * INSTRUCTION.size)
        if kind == WIDE:
            *_, high = INSTRUCTION.unpack_from(code, (at + 1) * INSTRUCTION.size)
            number = (high & 0xFFFFFFFF) << 32 | low & 0xFFFFFFFF
            if registers >> 4 == PSEUDO_MAP:
                found.append((at, tables[low]))
            elif number in known:
                numbers.append((at, number))
            at += 1
        at += 1
    return Function(name, code, found, numbers)


def create_tables(tables: Sequence[Table], entries: Mapping[str, int]) -> list[maps.Map]:
    """The maps, in the order of ``tables``. ``entries``: how many, where it is not what was compiled. Raises ``OSError``."""
    made: list[maps.Map] = []
    try:
        for table in tables:
            inner = made[table.inner].fd if table.inner >= 0 else 0
            sizes = table.key_bytes, table.value_bytes
            count = entries.get(table.name, table.entries)
            made.append(maps.create(table.kind, sizes, count, table.name, table.flags, inner))
    except BaseException:
        for each in made:
            each.close()
        raise
    return made


def _set_wide(code: bytearray, at: int, number: int) -> None:
    for place, half in ((at, number & 0xFFFFFFFF), (at + 1, number >> 32)):
        struct.pack_into("=I", code, place * INSTRUCTION.size + 4, half)
