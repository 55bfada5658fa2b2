"""The BTF inside a kernel image, for checking our programs against a kernel that is not running.

Formats: x86-64 bzImage (Linux ``Documentation/arch/x86/boot.rst``: ``payload_offset``, ``payload_length``), gzip or raw
arm64 ``Image``, ELF ``vmlinux``; the BTF is found by its section or, in raw images, by its header.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from typing import TYPE_CHECKING

import zstandard

from active_restore.ebpf.btf import MAGIC, BtfError

if TYPE_CHECKING:
    from pathlib import Path

_SETUP_SECTS, _BOOT_MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
_SECTOR = 512
_HEAD_LEN = 24


def read_btf(image: Path) -> bytes:
    """The base BTF of the kernel in ``image``. Raises ``BtfError`` where there is none or the packing is unknown."""
    raw = image.read_bytes()
    kernel = _unpack(_payload(raw) if raw[_BOOT_MAGIC : _BOOT_MAGIC + 4] == b"HdrS" else raw)
    found = _elf_section(kernel, b".BTF") if kernel[:4] == b"\x7fELF" else _by_header(kernel)
    if found is None:
        raise BtfError(f"There is no BTF in {image}.")
    return found


def _payload(raw: bytes) -> bytes:
    offset, length = struct.unpack_from("<II", raw, _PAYLOAD)
    begin = (raw[_SETUP_SECTS] + 1) * _SECTOR + offset
    return raw[begin : begin + length]


def _unpack(data: bytes) -> bytes:
    if data[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(data)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if data[:2] == b"\x1f\x8b":
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data)
    if data[:3] == b"\x5d\0\0":
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data)
    return data


def _elf_section(elf: bytes, name: bytes) -> bytes | None:
    (table_at,) = struct.unpack_from("<Q", elf, 0x28)
    entry_bytes, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<I20xQQ", elf, table_at + i * entry_bytes) for i in range(count)]
    names_at = sections[names_index][1]
    for name_at, offset, size in sections:
        if _name(elf, names_at + name_at) == name:
            return elf[offset : offset + size]
    return None


def _name(elf: bytes, at: int) -> bytes:
    return elf[at : elf.index(b"\0", at)]


def _by_header(data: bytes) -> bytes | None:
    """A raw image has no section table: look for a BTF header whose parts fit together."""
    wanted = struct.pack("<HBBI", MAGIC, 1, 0, _HEAD_LEN)
    at = data.find(wanted)
    while at >= 0:
        type_at, type_len, text_at, text_len = struct.unpack_from("<IIII", data, at + 8)
        end = _HEAD_LEN + text_at + text_len
        if type_at == 0 and type_len == text_at and len(data) >= at + end and data[at + end - 1] == 0:
            return data[at : at + end]
        at = data.find(wanted, at + 1)
    return None
