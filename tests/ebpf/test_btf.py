"""BTF is read right, whatever the structs look like, and this machine's, too."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_restore.ebpf.btf import VMLINUX, Btf, BtfError, Kind, read_kernel
from tests.ebpf.btf_writer import BtfWriter

_ALIASES = [8, 9, 10, 11, 18]


@dataclass
class _Leaf:
    size: int
    aliases: list[int]


@dataclass
class _Anonymous:
    union: bool
    members: list[_Leaf | _Anonymous]


@st.composite
def members(draw: st.DrawFn, depth: int = 3) -> list[_Leaf | _Anonymous]:
    """Named integers behind aliases, and anonymous structs and unions of the same."""
    leaf = st.builds(_Leaf, st.sampled_from([1, 2, 4, 8]), st.lists(st.sampled_from(_ALIASES), max_size=3))
    choice = st.one_of(leaf, st.builds(_Anonymous, st.booleans(), members(depth - 1))) if depth else leaf
    return draw(st.lists(choice, min_size=1, max_size=5))


class _Builder:
    """Writes a tree of members and remembers where each named one is."""

    def __init__(self) -> None:
        self.writer = BtfWriter()
        self.expected: dict[str, tuple[int, int]] = {}

    def composite(self, name: str, tree: list[_Leaf | _Anonymous], base: int, *, union: bool) -> tuple[int, int]:
        """(type id, size); ``base`` is the absolute byte offset."""
        fields, at, size = [], 0, 0
        for entry in tree:
            begin = 0 if union else at
            if isinstance(entry, _Anonymous):
                type_id, width = self.composite("", entry.members, base + begin, union=entry.union)
                fields.append(("", type_id, begin * 8, 0))
            else:
                width = entry.size
                type_id = self.writer.integer(f"u{width}", width)
                for kind in entry.aliases:
                    type_id = self.writer.alias(kind, "alias" if kind in (8, 18) else "", type_id)
                label = f"m{len(self.expected)}"
                self.expected[label] = (base + begin, width)
                fields.append((label, type_id, begin * 8, 0))
            at += width
            size = max(size, begin + width)
        return self.writer.composite(5 if union else 4, name, size, fields), size


@given(members())
def test_members_through_anonymous_structs_and_unions(tree: list[_Leaf | _Anonymous]) -> None:
    builder = _Builder()
    _, size = builder.composite("outer", tree, 0, union=False)
    btf = Btf(builder.writer.finish())
    assert btf.struct("outer").size == size
    for label, (offset, width) in builder.expected.items():
        found = btf.member("outer", label)
        assert (found.offset, found.type.size, found.type.kind, found.bits) == (offset, width, Kind.INT, 0)


@given(st.lists(st.integers(1, 31), min_size=1, max_size=10))
def test_bit_fields(widths: list[int]) -> None:
    writer = BtfWriter()
    word = writer.integer("unsigned int", 4)
    fields, at = [], 0
    for index, width in enumerate(widths):
        fields.append((f"b{index}", word, at, width))
        at += width
    writer.composite(4, "flags", (at + 31) // 32 * 4, fields)
    btf = Btf(writer.finish())
    for name, _, bit, width in fields:
        found = btf.member("flags", name)
        assert (found.bit_offset, found.bits, found.offset) == (bit, width, bit // 8)


def test_path_through_structs_and_arrays() -> None:
    writer = BtfWriter()
    word = writer.integer("unsigned long", 8)
    inner = writer.composite(4, "inner", 16, [("a", word, 0, 0), ("b", writer.pointer(0), 64, 0)])
    row = writer.array(writer.alias(8, "inner_t", inner), 4, word)
    writer.enumeration("color", [("red", 1)])
    writer.composite(4, "outer", 80, [("head", word, 0, 0), ("rows", row, 128, 0)])
    btf = Btf(writer.finish())
    found = btf.member("outer", "rows[3].b")
    assert (found.offset, found.type.kind, found.type.size) == (16 + 3 * 16 + 8, Kind.PTR, 8)
    for path in ("rows[4].b", "head.b", "rows.b"):
        with pytest.raises(BtfError, match="in struct outer"):
            btf.member("outer", path)


def test_functions() -> None:
    writer = BtfWriter()
    hook = writer.function("bpf_lsm_file_open")
    btf = Btf(writer.finish())
    assert btf.function_id("bpf_lsm_file_open") == hook
    assert not btf.has_function("bpf_lsm_file_truncate")


def test_missing_things_are_named() -> None:
    writer = BtfWriter()
    writer.composite(4, "file", 0, [])
    btf = Btf(writer.finish())
    with pytest.raises(BtfError, match=r"no member f_inode in struct file\.$"):
        btf.member("file", "f_inode")
    with pytest.raises(BtfError, match=r"no struct inode\.$"):
        btf.struct("inode")
    with pytest.raises(BtfError, match=r"no function bpf_lsm_file_open\.$"):
        btf.function_id("bpf_lsm_file_open")


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(BtfError):
        Btf(data)


@given(st.data())
def test_cut_short(data: st.DataObject) -> None:
    writer = BtfWriter()
    writer.composite(4, "file", 8, [("f", writer.integer("int", 4), 0, 0)])
    whole = writer.finish()
    with pytest.raises(BtfError):
        Btf(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")
def test_this_machine() -> None:
    btf = Btf(read_kernel())
    inode = btf.member("file", "f_inode")
    assert (inode.type.kind, inode.type.name, inode.type.size) == (Kind.PTR, "inode", 8)
    assert btf.member("task_struct", "thread_info.flags").offset == btf.member("thread_info", "flags").offset
    assert btf.struct("task_struct").size > 1000
