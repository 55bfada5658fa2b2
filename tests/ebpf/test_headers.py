"""The header tree is made of BTF alone, once, and says in one line what a kernel lacks."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf.btf import Btf, BtfError, read_kernel
from active_restore.ebpf.headers import ARCHITECTURES, make_headers, write_headers
from active_restore.errors import CapabilityMissing
from tests.ebpf.btf_writer import BtfWriter

if TYPE_CHECKING:
    from pathlib import Path


def test_written_once(tmp_path: Path) -> None:
    tree = write_headers(read_kernel(), platform.machine(), tmp_path)
    written = (tree / "include/kernel.h").stat().st_mtime_ns
    assert write_headers(read_kernel(), platform.machine(), tmp_path) == tree
    assert (tree / "include/kernel.h").stat().st_mtime_ns == written
    assert [entry.name for entry in tmp_path.iterdir()] == [tree.name]
    assert tree.is_absolute()


def test_offsets_are_the_kernels() -> None:
    btf = Btf(read_kernel())
    text = make_headers(btf, ARCHITECTURES[platform.machine()])["include/kernel.h"]
    offset = btf.member("inode", "i_ino").offset
    body = text[text.index("struct inode {") :]
    before = body[: body.index("u64 i_ino;")].splitlines()[1:]
    assert sum(_bytes(line) for line in before if line.strip()) == offset


def _bytes(declaration: str) -> int:
    """Of ``char _gap_8[4];``, ``u16 i_mode;`` or a pointer."""
    kind, name = declaration.split()[:2]
    if name.startswith("_gap_"):
        return int(name.partition("[")[2].partition("]")[0])
    return int(kind[1:]) // 8 if kind[1:].isdigit() else 8


def test_missing_member_is_one_clear_line() -> None:
    writer = BtfWriter()
    word = writer.integer("unsigned long", 8)
    registers = [(name, word, index * 64, 0) for index, (name, _) in enumerate(ARCHITECTURES["x86_64"].registers)]
    writer.composite(4, "pt_regs", 8 * len(registers), registers)
    uuid = writer.composite(4, "uuid", 8, [("b", word, 0, 0)])
    writer.composite(4, "super_block", 16, [("s_dev", writer.integer("unsigned int", 4), 0, 0), ("s_uuid", uuid, 64, 0)])
    writer.composite(4, "inode", 8, [("i_ino", word, 0, 0)])
    with pytest.raises(BtfError) as caught:
        make_headers(Btf(writer.finish()), ARCHITECTURES["x86_64"])
    assert str(caught.value) == "The kernel's BTF has no member i_sb in struct inode."


def test_unknown_processor(tmp_path: Path) -> None:
    with pytest.raises(CapabilityMissing, match="processor s390x"):
        write_headers(read_kernel(), "s390x", tmp_path)
