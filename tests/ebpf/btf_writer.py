"""Writes BTF, to check the reader against structs of which everything is known (Linux Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct


class BtfWriter:
    """Types in the order in which they are added; ids start at 1."""

    def __init__(self) -> None:
        self._types: list[bytes] = []
        self._text = bytearray(b"\0")

    def integer(self, name: str, size: int, *, signed: bool = False) -> int:
        """BTF_KIND_INT."""
        return self._add(name, 1, 0, size, struct.pack("<I", (1 << 24 if signed else 0) | size * 8))

    def pointer(self, target: int) -> int:
        """BTF_KIND_PTR."""
        return self._add("", 2, 0, target)

    def array(self, element: int, count: int, index: int) -> int:
        """BTF_KIND_ARRAY."""
        return self._add("", 3, 0, 0, struct.pack("<III", element, index, count))

    def alias(self, kind: int, name: str, target: int) -> int:
        """BTF_KIND_TYPEDEF, VOLATILE, CONST, RESTRICT or TYPE_TAG."""
        return self._add(name, kind, 0, target)

    def composite(self, kind: int, name: str, size: int, members: list[tuple[str, int, int, int]]) -> int:
        """BTF_KIND_STRUCT (4) or UNION (5); members are (name, type, bit offset, bits of a bit-field or 0)."""
        has_bits = any(bits for _, _, _, bits in members)
        body = b"".join(
            struct.pack("<III", self._string(member), type_id, bits << 24 | offset if has_bits else offset)
            for member, type_id, offset, bits in members
        )
        return self._add(name, kind | (0x80 if has_bits else 0), len(members), size, body)

    def enumeration(self, name: str, values: list[tuple[str, int]]) -> int:
        """BTF_KIND_ENUM."""
        body = b"".join(struct.pack("<Ii", self._string(value), number) for value, number in values)
        return self._add(name, 6, len(values), 4, body)

    def function(self, name: str) -> int:
        """BTF_KIND_FUNC with a prototype of one parameter, so that both kinds are there to be passed over."""
        prototype = self._add("", 13, 1, 0, struct.pack("<II", self._string("argument"), 0))
        return self._add(name, 12, 0, prototype)

    def finish(self) -> bytes:
        """The whole."""
        types = b"".join(self._types)
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self._text))
        return head + types + bytes(self._text)

    def _string(self, text: str) -> int:
        if not text:
            return 0
        at = len(self._text)
        self._text += text.encode() + b"\0"
        return at

    def _add(self, name: str, kind: int, count: int, size: int, body: bytes = b"") -> int:
        info = (kind & 0x80) << 24 | (kind & 0x1F) << 24 | count
        self._types.append(struct.pack("<III", self._string(name), info, size) + body)
        return len(self._types)
