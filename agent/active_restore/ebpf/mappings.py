"""Programs that look at a mapping of the task that makes a system call: of which file it is, and which part of it shows.

Base of ``growth`` and ``growing``. Registers 6 to 9 are the programs', 0 to 5 are lost at every call of a helper.
"""

from __future__ import annotations

import platform
import struct
from typing import TYPE_CHECKING, NamedTuple

from active_restore.ebpf.assembly import FP, Program
from active_restore.errors import CapabilityMissing

if TYPE_CHECKING:
    from active_restore.ebpf.btf import Btf
    from active_restore.ebpf.maps import Map

FOUND = struct.Struct("=7Q")
"""What ``MappingWriter.find`` tells: inode number (0: none), its generation and above that its device (kernel encoding), where
in the file the mapping begins, its length, its flags, its address, and the superblock's."""
LOOKUP, UPDATE, DELETE, PID, TASK, READ = 1, 2, 3, 14, 35, 113
"""Numbers of helpers."""
_TASK_BTF, _FIND_VMA = 158, 180
_EBUSY = -16
# Somebody else holds the lock of the address space: after some microseconds we know nothing.
_TRIES = 64


class Calls(NamedTuple):
    """Numbers of system calls, and where the kernel keeps number and arguments (first, second, third, fifth) of one."""

    mmap: int
    mremap: int
    remap: int
    number: str
    arguments: tuple[str, str, str, str]


HERE = {
    "x86_64": Calls(9, 25, 216, "orig_ax", ("di", "si", "dx", "r8")),
    "aarch64": Calls(222, 216, 234, "syscallno", ("orig_x0", "regs[1]", "regs[2]", "regs[4]")),
}
_PREFIXES = {"x86_64": ("__x64_sys_", "__ia32_sys_"), "aarch64": ("__arm64_sys_",)}
COMPAT = {"x86_64": Calls(-1, 163, 257, "orig_ax", ("bx", "cx", "dx", "di"))}
"""Of 32-bit calls, where 64-bit programs can make them."""


class Offsets:
    """Where this kernel keeps what the programs read. Raises ``CapabilityMissing`` for a processor that is not known."""

    def __init__(self, btf: Btf) -> None:
        machine = platform.machine()
        if machine not in HERE:
            raise CapabilityMissing(f"There is no register layout for the processor {machine}.")
        self.btf = btf
        self.here, self.compat = HERE[machine], COMPAT.get(machine)

    def __call__(self, struct_name: str, path: str) -> int:
        return self.btf.member(struct_name, path).offset

    def register(self, name: str) -> int:
        """Of a system call."""
        return self("pt_regs", name)

    def functions(self, call: str) -> tuple[str, ...]:
        """Of a system call: the kernel's functions for it, that of 32-bit calls last where there is one."""
        names = tuple(prefix + call for prefix in _PREFIXES[platform.machine()])
        return names if self.btf.has_function("__ia32_sys_read") else names[:1]


class MappingWriter:
    """``maps`` by name. ``place``: on the stack, of what is found; the 16 bytes below it are ours, too."""

    def __init__(self, found: dict[str, Map], offsets: Offsets, place: int) -> None:
        self.maps, self.at = found, offsets
        self.found, self.word, self.small = place, place - 8, place - 16

    def find(self, code: Program, unknown: str) -> None:
        """The mapping of the address in 7; on to ``unknown`` where that cannot be told. ``describe`` must end the program."""
        for place in range(self.found, self.found + FOUND.size, 8):
            code.store_number(FP, place, 0)
        code.do("mov", 9, _TRIES).label("again").call(_TASK_BTF).do_register("mov", 1, 0).do_register("mov", 2, 7)
        code.load_callback(3).do_register("mov", 4, FP).do("add", 4, self.found).do("mov", 5, 0).call(_FIND_VMA)
        code.jump_if(0, "!=", _EBUSY, "looked").do("sub", 9, 1).jump_if(9, "!=", 0, "again").jump(unknown).label("looked")

    def describe(self, code: Program) -> Program:
        """The callback: the mapping is in 2, and what is told of it goes to where 3 leads."""
        at = self.at
        code.callback().do_register("mov", 6, 2).do_register("mov", 7, 3)
        self.read(code, 6, at("vm_area_struct", "vm_file"), -8)
        code.load(8, FP, -8).jump_if(8, "==", 0, "no file")
        self.follow(code, 8, at("file", "f_inode"), -8)
        self.read_identity(code, 8, -24, -8)
        code.store(7, 48, 9).load(1, FP, -24).store(7, 0, 1).load(1, FP, -16).store(7, 8, 1)
        self.read(code, 6, at("vm_area_struct", "vm_pgoff"), -8)
        code.load(1, FP, -8).do("lsh", 1, 12).store(7, 16, 1)
        self.read(code, 6, at("vm_area_struct", "vm_start"), -8)
        code.load(8, FP, -8).store(7, 40, 8)
        self.read(code, 6, at("vm_area_struct", "vm_end"), -8)
        code.load(1, FP, -8).do_register("sub", 1, 8).store(7, 24, 1)
        self.read(code, 6, at("vm_area_struct", "vm_flags"), -8)
        code.load(1, FP, -8).store(7, 32, 1).label("no file")
        return code.end()

    def read_identity(self, code: Program, inode: int, place: int, scratch: int) -> None:
        """Number, generation and device of an inode; leaves its superblock in 9."""
        self.read(code, inode, self.at("inode", "i_ino"), place)
        self.read(code, inode, self.at("inode", "i_generation"), place + 8, 4)
        code.do_register("mov", 9, inode)
        self.follow(code, 9, self.at("inode", "i_sb"), scratch)
        self.read(code, 9, self.at("super_block", "s_dev"), place + 12, 4)

    def read(self, code: Program, source: int, offset: int, place: int, width: int = 8) -> None:
        """``width`` bytes at an address in the kernel, to a place on the stack."""
        code.do_register("mov", 3, source).do("add", 3, offset).do_register("mov", 1, FP).do("add", 1, place)
        code.do("mov", 2, width).call(READ)

    def follow(self, code: Program, register: int, offset: int, place: int = 0) -> None:
        """``register = *(register + offset)``; 0 where that cannot be read. ``place`` is spoilt."""
        place = place or self.word
        self.read(code, register, offset, place)
        code.load(register, FP, place)

    def argument(self, code: Program, register: int, name: str, *, width: int = 8) -> None:
        """``register`` gets an argument of the call whose registers are at the address in 6."""
        self.read(code, 6, self.at.register(name), self.word, width)
        code.load(register, FP, self.word, width)

    def look_up(self, code: Program, which: str, key: int) -> None:
        """The address of a value in 0, or 0; the key is at that place."""
        code.load_map(1, self.maps[which]).do_register("mov", 2, FP).do("add", 2, key).call(LOOKUP)

    def update(self, code: Program, which: str, key: int, value: int) -> None:
        """Store; 0 is 0 where that was possible."""
        code.load_map(1, self.maps[which]).do_register("mov", 2, FP).do("add", 2, key)
        code.do_register("mov", 3, FP).do("add", 3, value).do("mov", 4, 0).call(UPDATE)

    def jump_unless_known(self, code: Program, which: str, flag: int, label: str) -> None:
        """On to ``label`` unless ``which`` has the address space of this task, or word ``flag`` of "state" is set."""
        code.call(TASK).do_register("mov", 8, 0)
        self.read(code, 8, self.at("task_struct", "mm"), self.word)
        self.look_up(code, which, self.word)
        code.jump_if(0, "!=", 0, "known")
        self.jump_if_state(code, flag, "known")
        code.jump(label).label("known")

    def jump_if_state(self, code: Program, slot: int, label: str) -> None:
        """Where that word is not 0."""
        self.state(code, slot, label)
        code.load(1, 0, 0).jump_if(1, "!=", 0, label)

    def state(self, code: Program, slot: int, label: str) -> None:
        """Its address in 0, or on to ``label``, as the verifier wants it."""
        code.store_number(FP, self.small, slot)
        self.look_up(code, "state", self.small)
        code.jump_if(0, "==", 0, label)
