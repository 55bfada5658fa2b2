"""The kernel headers that our programs need, made from BTF: no kernel source on the machine, no minutes of compiling.

The tree holds only the structs and members that ``bpf/*.c`` names, at this kernel's offsets (``kernel.h``), and the
files that bcc itself includes. It is cached by a hash of the BTF and of what is asked of it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.ebpf.btf import Btf, BtfError, Kind
from active_restore.errors import CapabilityMissing

if TYPE_CHECKING:
    from active_restore.ebpf.btf import Member


@dataclass(frozen=True, slots=True)
class Architecture:
    """What of a processor the headers depend on. ``registers``: alias and path of each member of ``struct pt_regs``."""

    name: str
    define: str
    source_dir: str
    registers: tuple[tuple[str, str], ...]


def _same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


ARCHITECTURES = {
    "x86_64": Architecture(
        "x86_64", "ARCH_X86_64", "x86", _same("orig_ax", "cs", "di", "si", "dx", "r10", "r8", "r9", "sp", "ip", "ax")
    ),
    "aarch64": Architecture("aarch64", "ARCH_AARCH64", "arm64", _same("regs", "sp", "pc", "pstate", "orig_x0", "syscallno")),
}

_SIGCONT = 18

# Struct -> (name in our C, path in the kernel's BTF). A path may go through embedded structs and array elements.
_SHAPES: dict[str, tuple[tuple[str, str], ...]] = {
    "super_block": (*_same("s_dev"), ("s_uuid", "s_uuid.b")),
    "inode": _same("i_ino", "i_sb", "i_mode", "i_generation", "i_size"),
    "dentry": (*_same("d_inode", "d_parent"), ("name", "d_name.name")),
    "vfsmount": _same("mnt_root"),
    "mount": (("mnt_root", "mnt.mnt_root"), ("mnt_id", "mnt_id")),
    "path": _same("mnt", "dentry"),
    "file": (*_same("f_inode", "f_flags", "f_mode", "f_pos"), ("mnt", "f_path.mnt"), ("dentry", "f_path.dentry")),
    "files_struct": _same("fdt"),
    "fdtable": _same("max_fds", "fd"),
    "sighand_struct": (("sigcont_handler", f"action[{_SIGCONT - 1}].sa.sa_handler"),),
    "signal_struct": (("live", "live.counter"), ("shared_pending", "shared_pending.signal.sig")),
    "task_struct": (
        ("thread_flags", "thread_info.flags"),
        ("flags", "flags"),
        ("ptrace", "ptrace"),
        ("group_leader", "group_leader"),
        ("start_boottime", "start_boottime"),
        ("signal", "signal"),
        ("sighand", "sighand"),
        ("files", "files"),
        ("mm", "mm"),
        ("blocked_signals", "blocked.sig"),
        ("pending_signals", "pending.signal.sig"),
    ),
    "request": _same("q", "__data_len", "cmd_flags"),
    "request_queue": _same("disk"),
    "gendisk": _same("part0"),
    "block_device": _same("bd_dev"),
}
_OPTIONAL_HOOKS = {"HAVE_FILE_TRUNCATE": "bpf_lsm_file_truncate"}

_TYPES_H = """#pragma once
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32; typedef unsigned long long __u64;
typedef signed char __s8; typedef short __s16; typedef int __s32; typedef long long __s64;
typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;
typedef __s8 s8; typedef __s16 s16; typedef __s32 s32; typedef __s64 s64;
typedef __u16 __be16; typedef __u32 __be32; typedef __u64 __be64; typedef __u16 __le16; typedef __u32 __le32;
typedef __u64 __le64; typedef __u32 __wsum; typedef __u16 __sum16;
#define __aligned_u64 __u64 __attribute__((aligned(8)))
typedef _Bool bool; typedef unsigned long size_t; typedef long ssize_t; typedef unsigned long uintptr_t;
typedef long long loff_t; typedef int pid_t; typedef u32 dev_t; typedef u64 sector_t;
enum { false, true };
#define NULL ((void *)0)
#define __always_inline inline __attribute__((always_inline))
"""
_INCLUDE_TYPES = "#include <linux/types.h>\n"


def write_headers(btf: bytes, machine: str, cache_dir: Path) -> Path:
    """The header tree for this BTF and processor (``platform.machine()``), made once; returns its absolute path.

    Raises ``BtfError`` naming the struct and member that the kernel lacks, ``CapabilityMissing`` for a processor
    without a register layout.
    """
    tree = cache_dir.resolve() / f"headers-{hashlib.sha256(recipe(machine) + btf).hexdigest()[:24]}"
    if tree.is_dir():
        return tree
    files = make_headers(Btf(btf), _architecture(machine))
    cache_dir.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=cache_dir))
    for name, text in files.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    try:
        scratch.rename(tree)
    except OSError:
        # Somebody else was faster, with an equal tree.
        shutil.rmtree(scratch)
        if not tree.is_dir():
            raise
    return tree


def recipe(machine: str) -> bytes:
    """All that the headers are made of, but the BTF. Raises ``CapabilityMissing`` for a processor without a register layout."""
    return repr((_architecture(machine), _SHAPES, _OPTIONAL_HOOKS, _TYPES_H)).encode()


def _architecture(machine: str) -> Architecture:
    found = ARCHITECTURES.get(machine)
    if found is None:
        raise CapabilityMissing(
            f"There is no register layout for the processor {machine}.", "The fanotify interceptor works without."
        )
    return found


def make_headers(btf: Btf, architecture: Architecture) -> dict[str, str]:
    """Relative path -> text of every file of the tree. Raises ``BtfError``."""
    arch_dir = f"arch/{architecture.source_dir}/include"
    return {
        "include/kernel.h": _kernel_h(btf, architecture),
        "include/linux/types.h": _TYPES_H,
        "include/linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
        # bcc compares it for its own work-arounds; every kernel with BPF LSM and ring buffers is newer than all of them.
        "include/linux/version.h": (
            "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n"
            "#define LINUX_VERSION_CODE KERNEL_VERSION(6, 1, 0)\n"
        ),
        "include/linux/bpf_common.h": _INCLUDE_TYPES,
        "include/linux/log2.h": _INCLUDE_TYPES,
        "include/uapi/linux/if_packet.h": _INCLUDE_TYPES,
        "include/uapi/linux/bpf.h": "#include <bcc/bpf.h>\n",
        f"{arch_dir}/asm/page.h": _INCLUDE_TYPES + "#define PAGE_SIZE 4096\n",
    }


def _kernel_h(btf: Btf, architecture: Architecture) -> str:
    shapes = {"pt_regs": architecture.registers, **_SHAPES}
    lines = ["#pragma once", "#include <linux/types.h>", f"#define {architecture.define} 1"]
    lines += [f"#define {define} 1" for define, hook in _OPTIONAL_HOOKS.items() if btf.has_function(hook)]
    lines += [f"struct {name};" for name in shapes]
    for name, members in shapes.items():
        lines += _struct(name, [(alias, btf.member(name, path)) for alias, path in members], set(shapes))
    return "\n".join(lines) + "\n"


def _struct(name: str, members: list[tuple[str, Member]], known: set[str]) -> list[str]:
    lines, at = [f"struct {name} {{"], 0
    for alias, member in sorted(members, key=lambda item: item[1].offset):
        if member.bits or member.offset < at:
            raise BtfError(f"The member {member.name} of struct {name} has no place of its own in this kernel.")
        if member.offset > at:
            lines.append(f"\tchar _gap_{at}[{member.offset - at}];")
        lines.append(f"\t{_declare(name, alias, member, known)};")
        at = member.offset + member.type.size
    return [*lines, "} __attribute__((packed, aligned(8)));"]


def _declare(struct_name: str, alias: str, member: Member, known: set[str]) -> str:
    kind, count = member.type, ""
    if kind.kind is Kind.ARRAY and kind.element is not None:
        kind, count = kind.element, f"[{kind.count}]"
    if kind.kind is Kind.PTR:
        return f"{f'struct {kind.name}' if kind.name in known else 'void'} *{alias}{count}"
    if kind.kind in (Kind.INT, Kind.ENUM) and kind.size in (1, 2, 4, 8):
        return f"{'s' if kind.signed else 'u'}{8 * kind.size} {alias}{count}"
    raise BtfError(f"The member {member.name} of struct {struct_name} is of an unexpected type ({kind.kind.name}).")
