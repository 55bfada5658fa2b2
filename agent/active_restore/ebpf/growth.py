"""The programs that stop whoever has made a mapping of a guarded file show more of it, before it returns to user mode.

mremap(2) and remap_file_pages(2) are asked about nowhere. When such a call is over, the program looks at the mapping that came
of it; where that is one of a guarded inode, the thread is entered in ``grown`` and stopped (SIGSTOP), and ``ring`` wakes
up whoever looks. Processes that never mapped a guarded file are not looked at: ``holders`` has the address spaces of those
that did, noted when the call begins, so that a child that is forked while it goes on is noted, too.

Not guaranteed: anything for PID 1, which cannot be sent a signal, and for who is traced by somebody who takes the stop away.
They must not be given such mappings.
"""

from __future__ import annotations

import contextlib
import os
import platform
import struct
from typing import TYPE_CHECKING, NamedTuple, Self

from active_restore.ebpf import maps
from active_restore.ebpf.assembly import FP, Program
from active_restore.ebpf.btf import Btf, read_kernel
from active_restore.ebpf.maps import Map
from active_restore.errors import CapabilityMissing
from active_restore.linux.process import is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_KEY, _FLAG, _STATE = struct.Struct("=QQ"), struct.Struct("=I"), struct.Struct("=Q")
# since, inode, generation and device, offset, length, flags, thread, thread group, command
_GROWN = struct.Struct("=6QII16s")
_MAPS = {
    "guarded": (maps.HASH, (_KEY.size, 4), 1 << 15, maps.NO_PREALLOC),
    "holders": (maps.HASH, (8, 4), 1 << 13, 0),
    "grown": (maps.HASH, (4, _GROWN.size), 1 << 12, 0),
    "state": (maps.ARRAY, (4, 8), 3, 0),
    "ring": (maps.RING, (0, 0), 1 << 12, 0),
}
_LINKS = ("sys_enter", "sched_process_fork", "sys_exit")
# Slots of "state": all address spaces count as holders (there were too many); who would be stopped is killed; there was no room
# for an entry.
_EVERYBODY, _ABANDONED, _LOST = 0, 1, 2
_SIGKILL, _SIGSTOP = 9, 19
_LOOKUP, _UPDATE, _KTIME, _PID, _COMM, _TASK = 1, 2, 5, 14, 16, 35
_SIGNAL, _READ, _SIGNAL_THREAD, _RING_OUTPUT, _TASK_BTF, _FIND_VMA = 109, 113, 117, 130, 158, 180
_FORCE_WAKEUP = 2
_EBUSY = -16
# Somebody else holds the lock of the address space: after some microseconds the thread is stopped, whatever its mapping is.
_TRIES = 64
_LAST_ERROR = -4096
_TS_COMPAT = 2
_X32 = 0x3FFFFFFF
VM_SHARED_WRITABLE = 0x28
"""VM_SHARED | VM_MAYWRITE of ``Grown.flags``."""


class _Calls(NamedTuple):
    """Numbers of system calls, and where the kernel keeps number and arguments of one."""

    mmap: int
    mremap: int
    remap: int
    number: str
    arguments: tuple[str, str, str, str]


_HERE = {
    # The first, second, third and fifth argument.
    "x86_64": _Calls(9, 25, 216, "orig_ax", ("di", "si", "dx", "r8")),
    "aarch64": _Calls(222, 216, 234, "syscallno", ("orig_x0", "regs[1]", "regs[2]", "regs[4]")),
}
_COMPAT = {"x86_64": _Calls(-1, 163, 257, "orig_ax", ("bx", "cx", "dx", "di"))}


CALLS = frozenset({_HERE[name].mremap for name in _HERE if name == platform.machine()} | {163, 216, 234, 257})
"""Numbers of system calls after which a thread may be stopped."""


class Grown(NamedTuple):
    """A thread that was stopped. The mapping shows ``length`` bytes from ``offset`` on; ``inode`` is 0: not known.

    ``where`` is what ``which`` made of the file system and the generation of the inode.
    """

    since_ns: int
    inode: int
    where: int
    offset: int
    length: int
    flags: int
    tid: int
    tgid: int
    comm: bytes


class Growth:
    """The programs and their maps; pinned, they outlive us. ``ring`` can be polled for reading."""

    def __init__(self, pins: Path) -> None:
        self._pins = pins
        self._maps = {name: Map.pinned(pins / f"map_{name}") for name in _MAPS}
        self.ring = self._maps["ring"].fd

    @classmethod
    def loaded(cls, pins: Path) -> Self:
        """Load and pin them in a directory of bpffs. Raises ``CapabilityMissing``."""
        try:
            _load(pins)
            return cls(pins)
        except OSError as error:
            raise CapabilityMissing(
                f"programs on system calls cannot be loaded ({error.strerror}: {error.filename})"
            ) from error

    def guard(self, inode: int, where: int) -> None:
        """Look at mappings of this one from now on. Raises ``OSError`` where there is no room."""
        self._maps["guarded"].put(_KEY.pack(inode, where), _FLAG.pack(1))

    def forget(self, inode: int, where: int) -> None:
        """Not any more."""
        self._maps["guarded"].remove(_KEY.pack(inode, where))

    def grown(self) -> Iterator[Grown]:
        """Who is stopped, and what was left by those that are gone."""
        for _, value in self._maps["grown"].items():
            yield Grown(*_GROWN.unpack(value))

    def conclude(self, grown: Grown) -> None:
        """This one is not stopped any more."""
        key = _FLAG.pack(grown.tid)
        value = self._maps["grown"].get(key)
        if value is not None and Grown(*_GROWN.unpack(value)) == grown:
            self._maps["grown"].remove(key)

    def abandon(self, *, abandoned: bool) -> None:
        """Whether nobody will ever come for those who are stopped: then they are killed instead."""
        self._maps["state"].put(_FLAG.pack(_ABANDONED), _STATE.pack(abandoned))

    def close(self) -> None:
        """Give the descriptors back; pins stay."""
        for each in self._maps.values():
            each.close()


def which(superblock: str, generation: int) -> int:
    """Of an inode: its file system (``mounts.superblock``) and its generation, as the programs see them.

    Others with the same number and generation are on copies of that file system.
    """
    major, minor = map(int, superblock.split(":"))
    return (major << 20 | minor) << 32 | generation


def unpin(pins: Path) -> None:
    """End the programs."""
    if pins.is_dir():
        for path in sorted(pins.iterdir()):
            path.unlink()
        pins.rmdir()


def _load(pins: Path) -> None:
    if platform.machine() not in _HERE:
        raise CapabilityMissing(f"There is no register layout for the processor {platform.machine()}.")
    offsets = _Offsets(Btf(read_kernel()))
    pins.parent.mkdir(parents=True, exist_ok=True)
    _sweep(pins.parent)
    scratch = pins.with_name(f"{pins.name}-{os.getpid()}")
    scratch.mkdir()
    made: list[int] = []
    try:
        found = {name: maps.create(*shape[:3], f"ar_{name}", shape[3]) for name, shape in _MAPS.items()}
        made += [each.fd for each in found.values()]
        writer = _Writer(found, offsets)
        programs = dict(zip(_LINKS, (writer.enter(), writer.fork(), writer.leave()), strict=True))
        # All of them first: what is not pinned ends with us, should we be killed here.
        links = []
        for name, program in programs.items():
            links.append(program.attach(name))
            made.append(links[-1])
        for name, link in zip(_LINKS, links, strict=True):
            maps.pin(link, scratch / f"link_{name}")
        for name, each in found.items():
            maps.pin(each.fd, scratch / f"map_{name}")
        scratch.rename(pins)
    except BaseException:
        unpin(scratch)
        raise
    finally:
        for fd in made:
            os.close(fd)


def _sweep(directory: Path) -> None:
    """End what agents have left that were killed while they pinned: it would look at every system call until a reboot."""
    for left in directory.glob("windows_*-*"):
        if not is_alive(int(left.name.rpartition("-")[2])):
            with contextlib.suppress(OSError):
                unpin(left)


class _Offsets:
    """Where this kernel keeps what the programs read."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self.here, self.compat = _HERE[platform.machine()], _COMPAT.get(platform.machine())

    def __call__(self, struct_name: str, path: str) -> int:
        return self._btf.member(struct_name, path).offset

    def register(self, name: str) -> int:
        """Of a system call."""
        return self("pt_regs", name)


# Places on the stack: what is found goes to the map ``grown`` as it lies there.
_FOUND = -_GROWN.size
_INODE, _OFFSET, _LENGTH, _FLAGS, _TID, _NAME = (_FOUND + at for at in (8, 24, 32, 40, 48, 56))
_WORD, _SMALL = _FOUND - 8, _FOUND - 16


class _Writer:
    """Writes the three programs. 6 to 9 are theirs; 0 to 5 are lost at every call of a helper."""

    def __init__(self, found: dict[str, Map], offsets: _Offsets) -> None:
        self._maps, self._at = found, offsets

    def enter(self) -> Program:
        """Whoever begins to map a guarded file is a holder."""
        at, code = self._at, Program()
        code.load(2, 1, 8).jump_if(2, "!=", at.here.mmap, "out").load(6, 1, 0)
        self._read(code, 6, at.register(at.here.arguments[3]), _WORD)
        code.load(7, FP, _WORD, 4).jump_if(7, ">", 0x7FFFFFFF, "out")
        code.call(_TASK).do_register("mov", 8, 0)
        self._follow(code, 8, at("task_struct", "files"))
        self._follow(code, 8, at("files_struct", "fdt"))
        self._read(code, 8, at("fdtable", "max_fds"), _WORD)
        code.load(1, FP, _WORD, 4).jump_if_register(7, ">=", 1, "out")
        self._follow(code, 8, at("fdtable", "fd"))
        code.do("lsh", 7, 3).do_register("add", 8, 7)
        self._follow(code, 8, 0)
        code.jump_if(8, "==", 0, "out")
        self._follow(code, 8, at("file", "f_inode"))
        self._read_identity(code, 8, _INODE, _WORD)
        self._look_up(code, "guarded", _INODE)
        code.jump_if(0, "==", 0, "out").call(_TASK).do_register("mov", 8, 0)
        self._note_holder(code)
        return code.label("out").end()

    def fork(self) -> Program:
        """A child of a holder is one, too."""
        code = Program()
        code.load(6, 1, 0).load(8, 1, 8)
        self._read(code, 6, self._at("task_struct", "mm"), _WORD)
        self._look_up(code, "holders", _WORD)
        code.jump_if(0, "==", 0, "out")
        self._note_holder(code)
        return code.label("out").end()

    def leave(self) -> Program:
        """A holder's mapping may show more now: is it one of a guarded file?"""
        code = Program()
        self._take_calls(code)
        # 7: an address in that mapping.
        code.label("look").call(_TASK).do_register("mov", 8, 0)
        self._read(code, 8, self._at("task_struct", "mm"), _WORD)
        self._look_up(code, "holders", _WORD)
        code.jump_if(0, "!=", 0, "holds")
        self._jump_if_state(code, _EVERYBODY, "holds")
        code.jump("out").label("holds")
        for place in range(_FOUND, 0, 8):
            code.store_number(FP, place, 0)
        code.do("mov", 9, _TRIES).label("again").call(_TASK_BTF).do_register("mov", 1, 0).do_register("mov", 2, 7)
        code.load_callback(3).do_register("mov", 4, FP).do("add", 4, _INODE).do("mov", 5, 0).call(_FIND_VMA)
        code.jump_if(0, "!=", _EBUSY, "found").do("sub", 9, 1).jump_if(9, "!=", 0, "again").jump("hold")
        code.label("found").load(1, FP, _INODE).jump_if(1, "==", 0, "out")
        self._look_up(code, "guarded", _INODE)
        code.jump_if(0, "==", 0, "out").label("hold")
        self._hold(code)
        code.label("out").end().callback()
        self._describe(code)
        return code.end()

    def _take_calls(self, code: Program) -> None:
        """To ``look`` with an address in 7, after a call that may have made a mapping show more."""
        at = self._at
        code.load(6, 1, 0).load(7, 1, 8)
        self._read(code, 6, at.register(at.here.number), _WORD)
        code.load(9, FP, _WORD, 4)
        if at.compat is not None:
            code.do("and", 9, _X32).call(_TASK).do_register("mov", 8, 0)
            self._read(code, 8, at("task_struct", "thread_info.status"), _WORD)
            code.load(1, FP, _WORD, 4).jump_if(1, "&", _TS_COMPAT, "compat")
        self._take(code, at.here, "")
        if at.compat is not None:
            code.label("compat")
            self._take(code, at.compat, "_compat")

    def _take(self, code: Program, calls: _Calls, suffix: str) -> None:
        register = self._at.register
        code.jump_if(9, "==", calls.mremap, f"mremap{suffix}").jump_if(9, "!=", calls.remap, "out")
        code.jump_if(7, "!=", 0, "out")
        self._read(code, 6, register(calls.arguments[0]), _WORD)
        code.load(7, FP, _WORD).jump("look")
        code.label(f"mremap{suffix}").jump_if(7, ">", _LAST_ERROR, "out")
        # Made shorter or just moved it shows nothing new; the old length is 0 where it is doubled.
        self._read(code, 6, register(calls.arguments[1]), _WORD)
        code.load(8, FP, _WORD)
        self._read(code, 6, register(calls.arguments[2]), _WORD)
        code.load(9, FP, _WORD).jump_if(8, "==", 0, "look").jump_if_register(9, "<=", 8, "out").jump("look")

    def _hold(self, code: Program) -> None:
        """In this order: who finds the signal finds the entry, and who is woken up finds both."""
        self._jump_if_state(code, _ABANDONED, "kill")
        code.call(_KTIME).store(FP, _FOUND, 0).call(_PID).store(FP, _TID, 0)
        code.do_register("mov", 1, FP).do("add", 1, _NAME).do("mov", 2, 16).call(_COMM)
        self._update(code, "grown", _TID, _FOUND)
        code.jump_if(0, "==", 0, "entered")
        self._set_state(code, _LOST)
        code.label("entered").do("mov", 1, _SIGSTOP).call(_SIGNAL_THREAD)
        code.load_map(1, self._maps["ring"]).do_register("mov", 2, FP).do("add", 2, _FOUND).do("mov", 3, 8)
        code.do("mov", 4, _FORCE_WAKEUP).call(_RING_OUTPUT).jump("out")
        code.label("kill").do("mov", 1, _SIGKILL).call(_SIGNAL)

    def _describe(self, code: Program) -> None:
        """The callback: of which file a mapping is (2), and which part of it, in what 3 leads to."""
        at = self._at
        code.do_register("mov", 6, 2).do_register("mov", 7, 3)
        self._read(code, 6, at("vm_area_struct", "vm_file"), -8)
        code.load(8, FP, -8).jump_if(8, "==", 0, "no file")
        self._follow(code, 8, at("file", "f_inode"), -8)
        self._read_identity(code, 8, -24, -8)
        code.load(1, FP, -24).store(7, 0, 1).load(1, FP, -16).store(7, 8, 1)
        self._read(code, 6, at("vm_area_struct", "vm_pgoff"), -8)
        code.load(1, FP, -8).do("lsh", 1, 12).store(7, _OFFSET - _INODE, 1)
        self._read(code, 6, at("vm_area_struct", "vm_start"), -8)
        code.load(8, FP, -8)
        self._read(code, 6, at("vm_area_struct", "vm_end"), -8)
        code.load(1, FP, -8).do_register("sub", 1, 8).store(7, _LENGTH - _INODE, 1)
        self._read(code, 6, at("vm_area_struct", "vm_flags"), -8)
        code.load(1, FP, -8).store(7, _FLAGS - _INODE, 1).label("no file")

    def _read_identity(self, code: Program, inode: int, place: int, scratch: int) -> None:
        self._read(code, inode, self._at("inode", "i_ino"), place)
        self._read(code, inode, self._at("inode", "i_generation"), place + 8, 4)
        code.do_register("mov", 9, inode)
        self._follow(code, 9, self._at("inode", "i_sb"), scratch)
        self._read(code, 9, self._at("super_block", "s_dev"), place + 12, 4)

    def _note_holder(self, code: Program) -> None:
        """The address space of the task in 8."""
        self._read(code, 8, self._at("task_struct", "mm"), _WORD)
        code.store_number(FP, _SMALL, 1)
        self._update(code, "holders", _WORD, _SMALL)
        code.jump_if(0, "==", 0, "out")
        self._set_state(code, _EVERYBODY)

    def _read(self, code: Program, source: int, offset: int, place: int, width: int = 8) -> None:
        """``width`` bytes at an address in the kernel, to a place on the stack."""
        code.do_register("mov", 3, source).do("add", 3, offset).do_register("mov", 1, FP).do("add", 1, place)
        code.do("mov", 2, width).call(_READ)

    def _follow(self, code: Program, register: int, offset: int, place: int = _WORD) -> None:
        """``register = *(register + offset)``; 0 where that cannot be read."""
        self._read(code, register, offset, place)
        code.load(register, FP, place)

    def _look_up(self, code: Program, which: str, key: int) -> None:
        code.load_map(1, self._maps[which]).do_register("mov", 2, FP).do("add", 2, key).call(_LOOKUP)

    def _update(self, code: Program, which: str, key: int, value: int) -> None:
        code.load_map(1, self._maps[which]).do_register("mov", 2, FP).do("add", 2, key)
        code.do_register("mov", 3, FP).do("add", 3, value).do("mov", 4, 0).call(_UPDATE)

    def _state(self, code: Program, slot: int, label: str) -> None:
        """Its address in 0, or on to ``label``, as the verifier wants it."""
        code.store_number(FP, _SMALL, slot)
        self._look_up(code, "state", _SMALL)
        code.jump_if(0, "==", 0, label)

    def _jump_if_state(self, code: Program, slot: int, label: str) -> None:
        self._state(code, slot, label)
        code.load(1, 0, 0).jump_if(1, "!=", 0, label)

    def _set_state(self, code: Program, slot: int) -> None:
        self._state(code, slot, "out")
        code.store_number(0, 0, 1)
