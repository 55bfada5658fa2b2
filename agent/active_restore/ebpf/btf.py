"""BTF, the kernel's description of its own types: sizes, members, offsets, hooks.

Format: Linux ``Documentation/bpf/btf.rst``. Only the base BTF (``/sys/kernel/btf/vmlinux``) is read, not split BTF.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from active_restore.errors import CapabilityMissing

VMLINUX = Path("/sys/kernel/btf/vmlinux")
MAGIC = 0xEB9F
_HEADER = "HBBIIIII"
_KIND_FLAG = 31
_BITFIELD_SHIFT = 24
_OFFSET_MASK = (1 << _BITFIELD_SHIFT) - 1


class Kind(enum.IntEnum):
    """``BTF_KIND_*``."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Bytes behind the 12-byte head: a fixed part and one per element (vlen).
_FIXED = {Kind.INT: 4, Kind.FWD: 0, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
_EACH = {Kind.STRUCT: 12, Kind.UNION: 12, Kind.ENUM: 8, Kind.FUNC_PROTO: 8, Kind.DATASEC: 12, Kind.ENUM64: 12}
_ALIASES = (Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG)
_COMPOSITES = (Kind.STRUCT, Kind.UNION)
_INT_SIGNED = 1 << 24


class BtfError(CapabilityMissing):
    """The kernel has no BTF, or lacks a type or member that our programs need. The message names it."""

    code = "btf"


def read_kernel(path: Path = VMLINUX) -> bytes:
    """The BTF of the running kernel. Raises ``BtfError`` where there is none (CONFIG_DEBUG_INFO_BTF)."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BtfError(
            f"The kernel has no BTF ({path}: {error.strerror}).",
            "It needs CONFIG_DEBUG_INFO_BTF=y; the fanotify interceptor works without.",
        ) from error


@dataclass(frozen=True, slots=True)
class Type:
    """A type without aliases (typedef, const, volatile). ``size`` in bytes; ``element`` and ``count`` for arrays.

    ``name`` is empty for anonymous types and pointers. ``signed`` matters for integers only.
    """

    id: int
    kind: Kind
    name: str
    size: int
    signed: bool = False
    element: Type | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """A member found by name, whatever anonymous structs and unions it lies in.

    ``offset`` is in bytes from the start of the outermost struct. Bit-fields have ``bits`` > 0 and begin at bit
    ``bit_offset`` of the struct (then ``offset`` is that bit's byte); other members have ``bits`` == 0.
    """

    name: str
    type: Type
    offset: int
    bit_offset: int
    bits: int


class Btf:
    """The types of one kernel. Raises ``BtfError`` on construction where ``data`` is not BTF or is cut short."""

    def __init__(self, data: bytes, *, pointer_bytes: int = 8) -> None:
        self.data = data
        self._pointer_bytes = pointer_bytes
        self._order = "<" if data[:2] == MAGIC.to_bytes(2, "little") else ">"
        try:
            magic, version, _flags, head, type_at, type_len, text_at, text_len = self._read(_HEADER, 0)
        except struct.error:
            raise BtfError("The kernel's BTF is cut short.") from None
        if magic != MAGIC or version != 1 or len(data) < head + max(type_at + type_len, text_at + text_len):
            raise BtfError("The kernel's BTF is damaged or of an unknown version.")
        self._begin, self._end = head + type_at, head + type_at + type_len
        self._text = data[head + text_at : head + text_at + text_len]
        self._offsets = self._index()

    def struct(self, name: str) -> Type:
        """The struct ``name``. Raises ``BtfError``."""
        return self._resolve(self._named(Kind.STRUCT, name))

    def member(self, struct_name: str, path: str) -> Member:
        """A member by its path (``"action[17].sa.sa_handler"``). Raises ``BtfError`` naming struct and member."""
        bits = bit_offset = 0
        current = self.struct(struct_name)
        for part in re.findall(r"\w+|\[\d+\]", path):
            if part[0] == "[" and current.element is not None and int(part[1:-1]) < current.count:
                current, bits = current.element, 0
                bit_offset += int(part[1:-1]) * current.size * 8
                continue
            found = self._find(current.id, part, 0) if current.kind in _COMPOSITES else None
            if found is None:
                raise BtfError(f"The kernel's BTF has no member {path} in struct {struct_name}.")
            type_id, begin, bits = found
            bit_offset += begin
            current = self._resolve(type_id)
        return Member(path.rpartition(".")[2], current, bit_offset // 8, bit_offset, bits)

    def has_function(self, name: str) -> bool:
        """Whether the kernel has this function (``bpf_lsm_file_truncate`` for the hook ``file_truncate``)."""
        return (Kind.FUNC, name) in self._names

    def function_id(self, name: str) -> int:
        """The type id that an LSM or tracing program attaches to. Raises ``BtfError``."""
        return self._named(Kind.FUNC, name)

    def _read(self, layout: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + layout, self.data, at)

    def _index(self) -> list[int]:
        head = struct.Struct(self._order + "4xI4x").unpack_from
        offsets, at = [0], self._begin
        while at < self._end:
            offsets.append(at)
            try:
                (info,) = head(self.data, at)
                kind = Kind((info >> 24) & 0x1F)
            except (struct.error, ValueError):
                raise BtfError(f"The kernel's BTF has an unknown entry at byte {at}.") from None
            at += 12 + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)
        return offsets

    @cached_property
    def _names(self) -> dict[tuple[Kind, str], int]:
        """First definition wins, as in the kernel's own lookup by name."""
        wanted = {Kind.STRUCT, Kind.UNION, Kind.FUNC}
        head = struct.Struct(self._order + "II4x").unpack_from
        names: dict[tuple[Kind, str], int] = {}
        for type_id, at in enumerate(self._offsets[1:], 1):
            name_at, info = head(self.data, at)
            kind = (info >> 24) & 0x1F
            if kind in wanted and name_at:
                names.setdefault((Kind(kind), self._string(name_at)), type_id)
        return names

    def _string(self, at: int) -> str:
        return self._text[at : self._text.index(b"\0", at)].decode("ascii", "replace")

    def _named(self, kind: Kind, name: str) -> int:
        try:
            return self._names[kind, name]
        except KeyError:
            what = "function" if kind is Kind.FUNC else kind.name.lower()
            raise BtfError(f"The kernel's BTF has no {what} {name}.") from None

    def _head(self, type_id: int) -> tuple[int, int, int]:
        """(name offset, info, size or type)."""
        name_at, info, size = self._read("III", self._offsets[type_id])
        return name_at, info, size

    def _unalias(self, type_id: int) -> int:
        while type_id:
            _, info, target = self._head(type_id)
            if (info >> 24) & 0x1F not in _ALIASES:
                break
            type_id = target
        return type_id

    def _resolve(self, type_id: int) -> Type:
        type_id = self._unalias(type_id)
        if type_id == 0:
            return Type(0, Kind.VOID, "", 0)
        name_at, info, size = self._head(type_id)
        kind, name = Kind((info >> 24) & 0x1F), self._string(name_at)
        if kind is Kind.INT:
            (encoding,) = self._read("I", self._offsets[type_id] + 12)
            return Type(type_id, kind, name, size, signed=bool(encoding & _INT_SIGNED))
        if kind is Kind.PTR:
            target = self._unalias(size)
            target_name = self._string(self._head(target)[0]) if target else ""
            return Type(type_id, kind, target_name, self._pointer_bytes)
        if kind is Kind.ARRAY:
            element_id, _index, count = self._read("III", self._offsets[type_id] + 12)
            element = self._resolve(element_id)
            return Type(type_id, kind, "", element.size * count, element=element, count=count)
        sized = kind in (Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT)
        return Type(type_id, kind, name, size if sized else 0)

    def _find(self, type_id: int, wanted: str, base: int) -> tuple[int, int, int] | None:
        """(type id, bit offset, width of a bit-field or 0) of a member, searched through anonymous members."""
        _, info, _ = self._head(type_id)
        has_bits = info >> _KIND_FLAG
        for index in range(info & 0xFFFF):
            name_at, member_id, where = self._read("III", self._offsets[type_id] + 12 + 12 * index)
            bits, offset = (where >> _BITFIELD_SHIFT, where & _OFFSET_MASK) if has_bits else (0, where)
            if name_at and self._string(name_at) == wanted:
                return member_id, base + offset, bits
            if not name_at:
                inner = self._unalias(member_id)
                composite = inner and (self._head(inner)[1] >> 24) & 0x1F in _COMPOSITES
                found = self._find(inner, wanted, base + offset) if composite else None
                if found:
                    return found
        return None
