"""The structs and constants that programs and agent share, read from ``bpf/events.h``: declared once, there.

The header keeps to a small subset of C: enums with explicit values, structs of ``u32``, ``u64``, ``s64`` and arrays of
``char`` or ``u64``, without implicit padding. Anything else is refused here, when the module is imported.
"""

from __future__ import annotations

import re
import struct
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_CODES = {"u32": "I", "u64": "Q", "s64": "q"}
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_ENUM = re.compile(r"enum (\w+) \{(.*?)\};", re.DOTALL)
_STRUCT = re.compile(r"struct (\w+) \{(.*?)\};", re.DOTALL)
_MEMBER = re.compile(r"(u32|u64|s64|char) (\w+)(?:\[(\d+)\])?;")


class Layout(NamedTuple):
    """A struct of the header: its packed form and the names of its members in order.

    ``lengths`` are those of arrays of numbers, else 0; ``texts`` are the arrays of ``char``.
    """

    packed: struct.Struct
    names: tuple[str, ...]
    lengths: tuple[int, ...]
    texts: frozenset[str]

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Member name -> int, bytes (``char`` arrays, as they are) or tuple of int (other arrays)."""
        values = iter(self.packed.unpack_from(data))
        return {
            name: tuple(next(values) for _ in range(length)) if length else next(values)
            for name, length in zip(self.names, self.lengths, strict=True)
        }

    def pack(self, **members: int | bytes) -> bytes:
        """The struct with these members; others are zero."""
        fields: list[int | bytes] = []
        for name, length in zip(self.names, self.lengths, strict=True):
            fields += [0] * length if length else [members.pop(name, b"" if name in self.texts else 0)]
        if members:
            raise TypeError(f"unknown members: {', '.join(members)}")
        return self.packed.pack(*fields)


class Abi(NamedTuple):
    """What the header declares. ``constants`` holds the enumerators of all enums."""

    constants: Mapping[str, int]
    structs: Mapping[str, Layout]


def source_dir() -> Path:
    """Where ``bpf/*`` lies: in the package (a link to the top of the source tree), so that it is installed with it."""
    return Path(__file__).resolve().parents[1] / "bpf"


@cache
def load() -> Abi:
    """The ABI of ``events.h``."""
    return parse((source_dir() / "events.h").read_text())


def parse(header: str) -> Abi:
    """The declarations in the text of a header. Raises ``ValueError`` for what the subset does not have."""
    text = _COMMENT.sub("", header)
    constants: dict[str, int] = {}
    for _, body in _ENUM.findall(text):
        for part in filter(None, (item.strip() for item in body.split(","))):
            name, _, value = part.partition("=")
            constants[name.strip()] = int(value, 0)
    return Abi(constants, {name: _layout(name, body) for name, body in _STRUCT.findall(text)})


def _layout(struct_name: str, body: str) -> Layout:
    if rest := _MEMBER.sub("", body).strip():
        raise ValueError(f"struct {struct_name}: cannot read {rest!r}")
    codes, names, lengths, texts = "", [], [], set()
    for kind, name, count in _MEMBER.findall(body):
        if kind == "char":
            codes += f"{count}s"
            texts.add(name)
        else:
            codes += (count or "") + _CODES[kind]
        names.append(name)
        lengths.append(int(count) if count and kind != "char" else 0)
    packed = struct.Struct("=" + codes)
    if packed.size != struct.calcsize("@" + codes + "0Q"):
        raise ValueError(f"struct {struct_name} has implicit padding")
    return Layout(packed, tuple(names), tuple(lengths), frozenset(texts))
