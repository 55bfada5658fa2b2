"""The programs that stop whoever has made a mapping of a guarded file show more of it, before it returns to user mode.

mremap(2) and remap_file_pages(2) are asked about nowhere. When such a call is over, the program looks at the mapping that came
of it; where that is one of a guarded inode, the thread is entered in ``grown`` and stopped (SIGSTOP), and ``ring`` wakes
up whoever looks. Processes that never mapped a guarded file are not looked at: ``holders`` has the address spaces of those
that did, noted when the call begins, so that a child that is forked while it goes on is noted, too.

The programs are on these system calls alone where the kernel takes tracing programs; else on raw tracepoints, which every
system call of the machine passes.

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
from active_restore.ebpf.assembly import FENTRY, FEXIT, FP, Program
from active_restore.ebpf.btf import Btf, read_kernel
from active_restore.ebpf.mappings import FOUND, HERE, PID, TASK, Calls, MappingWriter, Offsets
from active_restore.ebpf.maps import Map
from active_restore.errors import CapabilityMissing
from active_restore.linux.process import is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_KEY, _FLAG, _STATE = struct.Struct("=QQ"), struct.Struct("=I"), struct.Struct("=Q")
# What was found, since, start of the thread, thread, thread group, command.
GROWN = struct.Struct("=7QQQII16s")
"""``Grown`` as the programs write it."""
_SINCE, _BEGAN, _TID, _NAME = FOUND.size, FOUND.size + 8, FOUND.size + 16, FOUND.size + 24
_MAPS = {
    "guarded": (maps.HASH, (_KEY.size, 4), 1 << 15, maps.NO_PREALLOC),
    "holders": (maps.HASH, (8, 4), 1 << 13, 0),
    "grown": (maps.HASH, (4, GROWN.size), 1 << 14, 0),
    "state": (maps.ARRAY, (4, 8), 3, 0),
    "ring": (maps.RING, (0, 0), 1 << 12, 0),
}
# Slots of "state": all address spaces count as holders (there were too many); who would be stopped is killed; there was no room
# for an entry.
_EVERYBODY, _ABANDONED, _LOST = 0, 1, 2
_SIGKILL, _SIGSTOP = 9, 19
_KTIME, _COMM, _SIGNAL, _SIGNAL_THREAD, _RING_OUTPUT = 5, 16, 109, 117, 130
_FORCE_WAKEUP = 2
_LAST_ERROR = -4096
_TS_COMPAT = 2
_X32 = 0x3FFFFFFF
VM_WRITE, VM_SHARED, VM_MAYWRITE, VM_LOCKED, VM_LOCKONFAULT = 0x2, 0x8, 0x20, 0x2000, 0x80000
"""Of ``Grown.flags``."""
CALLS = frozenset({HERE[name].mremap for name in HERE if name == platform.machine()} | {163, 216, 234, 257})
"""Numbers of system calls after which a thread may be stopped."""


class Grown(NamedTuple):
    """A thread that was stopped. The mapping shows ``length`` bytes from ``offset`` on; ``inode`` is 0: not known.

    ``where`` is what ``which`` made of the file system and the generation of the inode; ``began_ns`` (CLOCK_BOOTTIME) tells
    the thread from a later one with its number.
    """

    inode: int
    where: int
    offset: int
    length: int
    flags: int
    address: int
    superblock: int
    since_ns: int
    began_ns: int
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
            # The verifier's words are many lines; the last ones say what it is about.
            said = " / ".join(str(error.filename).splitlines()[-3:])
            raise CapabilityMissing(f"programs on system calls cannot be loaded ({error.strerror}: {said})") from error

    def guard(self, inode: int, where: int) -> None:
        """Look at mappings of this one from now on. Raises ``OSError`` where there is no room."""
        self._maps["guarded"].put(_KEY.pack(inode, where), _FLAG.pack(1))

    def forget(self, inode: int, where: int) -> None:
        """Not any more."""
        self._maps["guarded"].remove(_KEY.pack(inode, where))

    def grown(self) -> Iterator[Grown]:
        """Who is stopped, and what was left by those that are gone."""
        for _, value in self._maps["grown"].items():
            yield Grown(*GROWN.unpack(value))

    def conclude(self, grown: Grown) -> None:
        """This one is not stopped any more."""
        key = _FLAG.pack(grown.tid)
        value = self._maps["grown"].get(key)
        if value is not None and Grown(*GROWN.unpack(value)) == grown:
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
    offsets = Offsets(Btf(read_kernel()))
    pins.parent.mkdir(parents=True, exist_ok=True)
    _sweep(pins.parent)
    scratch = pins.with_name(f"{pins.name}-{os.getpid()}")
    scratch.mkdir()
    made: list[int] = []
    try:
        found = {name: maps.create(*shape[:3], f"ar_{name}", shape[3]) for name, shape in _MAPS.items()}
        made += [each.fd for each in found.values()]
        # All of them first: what is not pinned ends with us, should we be killed here.
        links = _attach(_Writer(found, offsets))
        made += links.values()
        for name, link in links.items():
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


def _attach(writer: _Writer) -> dict[str, int]:
    try:
        return _attached(_to_calls(writer))
    except (OSError, CapabilityMissing):
        return _attached(_to_all_calls(writer))


def _attached(links: Iterator[tuple[str, int]]) -> dict[str, int]:
    made: dict[str, int] = {}
    try:
        made.update(links)
    except BaseException:
        for link in made.values():
            os.close(link)
        raise
    return made


def _to_calls(writer: _Writer) -> Iterator[tuple[str, int]]:
    mmap, *_ = writer.at.functions("mmap")
    yield "mmap", writer.enter(any_call=False).attach(mmap, FENTRY, writer.at.btf.function_id(mmap))
    yield "sched_process_fork", writer.fork().attach("sched_process_fork")
    for name in (*writer.at.functions("mremap"), *writer.at.functions("remap_file_pages")):
        yield name.lstrip("_"), writer.leave().attach(name, FEXIT, writer.at.btf.function_id(name))


def _to_all_calls(writer: _Writer) -> Iterator[tuple[str, int]]:
    yield "sys_enter", writer.enter(any_call=True).attach("sys_enter")
    yield "sched_process_fork", writer.fork().attach("sched_process_fork")
    yield "sys_exit", writer.leave().attach("sys_exit")


def _sweep(directory: Path) -> None:
    """End what agents have left that were killed while they pinned: it would look at system calls until a reboot."""
    for left in directory.glob("windows_*-*"):
        if not is_alive(int(left.name.rpartition("-")[2])):
            with contextlib.suppress(OSError):
                unpin(left)


class _Writer(MappingWriter):
    """Writes the programs. What is found goes to the map ``grown`` as it lies on the stack."""

    def __init__(self, found: dict[str, Map], offsets: Offsets) -> None:
        super().__init__(found, offsets, -GROWN.size)

    def enter(self, *, any_call: bool) -> Program:
        """Whoever begins to map a guarded file is a holder."""
        at, code = self.at, Program()
        if any_call:
            code.load(2, 1, 8).jump_if(2, "!=", at.here.mmap, "out")
        code.load(6, 1, 0)
        self.argument(code, 7, at.here.arguments[3], width=4)
        code.jump_if(7, ">", 0x7FFFFFFF, "out")
        code.call(TASK).do_register("mov", 8, 0)
        self.follow(code, 8, at("task_struct", "files"))
        self.follow(code, 8, at("files_struct", "fdt"))
        self.read(code, 8, at("fdtable", "max_fds"), self.word)
        code.load(1, FP, self.word, 4).jump_if_register(7, ">=", 1, "out")
        self.follow(code, 8, at("fdtable", "fd"))
        code.do("lsh", 7, 3).do_register("add", 8, 7)
        self.follow(code, 8, 0)
        code.jump_if(8, "==", 0, "out")
        self.follow(code, 8, at("file", "f_inode"))
        self.read_identity(code, 8, self.found, self.word)
        self.look_up(code, "guarded", self.found)
        code.jump_if(0, "==", 0, "out").call(TASK).do_register("mov", 8, 0)
        self._note_holder(code)
        return code.label("out").end()

    def fork(self) -> Program:
        """A child of a holder is one, too."""
        code = Program()
        code.load(6, 1, 0).load(8, 1, 8)
        self.read(code, 6, self.at("task_struct", "mm"), self.word)
        self.look_up(code, "holders", self.word)
        code.jump_if(0, "==", 0, "out")
        self._note_holder(code)
        return code.label("out").end()

    def leave(self) -> Program:
        """A holder's mapping may show more now: is it one of a guarded file?"""
        code = Program()
        self._take_calls(code)
        # 7: an address in that mapping.
        code.label("look")
        self.jump_unless_known(code, "holders", _EVERYBODY, "out")
        self.find(code, "hold")
        code.load(1, FP, self.found).jump_if(1, "==", 0, "out")
        self.look_up(code, "guarded", self.found)
        code.jump_if(0, "==", 0, "out").label("hold")
        self._hold(code)
        code.label("out").end()
        return self.describe(code)

    def _take_calls(self, code: Program) -> None:
        """To ``look`` with an address in 7, after a call that may have made a mapping show more."""
        at = self.at
        code.load(6, 1, 0).load(7, 1, 8)
        self.argument(code, 9, at.here.number, width=4)
        if at.compat is not None:
            # Most calls are others.
            code.do("and", 9, _X32)
            for number in CALLS:
                code.jump_if(9, "==", number, "maybe")
            code.jump("out").label("maybe").call(TASK).do_register("mov", 8, 0)
            self.read(code, 8, at("task_struct", "thread_info.status"), self.word)
            code.load(1, FP, self.word, 4).jump_if(1, "&", _TS_COMPAT, "compat")
        self._take(code, at.here, "")
        if at.compat is not None:
            code.label("compat")
            self._take(code, at.compat, "_compat")

    def _take(self, code: Program, calls: Calls, suffix: str) -> None:
        code.jump_if(9, "==", calls.mremap, f"mremap{suffix}").jump_if(9, "!=", calls.remap, "out")
        code.jump_if(7, "!=", 0, "out")
        self.argument(code, 7, calls.arguments[0])
        code.jump("look").label(f"mremap{suffix}").jump_if(7, ">", _LAST_ERROR, "out")
        # Made shorter or just moved it shows nothing new; the old length is 0 where it is doubled.
        self.argument(code, 8, calls.arguments[1])
        self.argument(code, 9, calls.arguments[2])
        code.jump_if(8, "==", 0, "look").jump_if_register(9, "<=", 8, "out").jump("look")

    def _hold(self, code: Program) -> None:
        """In this order: who finds the signal finds the entry, and who is woken up finds both."""
        since, began, tid, name = (self.found + at for at in (_SINCE, _BEGAN, _TID, _NAME))
        self.jump_if_state(code, _ABANDONED, "kill")
        code.call(TASK).do_register("mov", 8, 0)
        self.read(code, 8, self.at("task_struct", "start_boottime"), began)
        code.call(_KTIME).store(FP, since, 0).call(PID).store(FP, tid, 0)
        code.do_register("mov", 1, FP).do("add", 1, name).do("mov", 2, 16).call(_COMM)
        self.update(code, "grown", tid, self.found)
        code.jump_if(0, "==", 0, "entered")
        self._set_state(code, _LOST)
        code.label("entered").do("mov", 1, _SIGSTOP).call(_SIGNAL_THREAD)
        code.load_map(1, self.maps["ring"]).do_register("mov", 2, FP).do("add", 2, self.found).do("mov", 3, 8)
        code.do("mov", 4, _FORCE_WAKEUP).call(_RING_OUTPUT).jump("out")
        code.label("kill").do("mov", 1, _SIGKILL).call(_SIGNAL)

    def _note_holder(self, code: Program) -> None:
        """The address space of the task in 8."""
        self.read(code, 8, self.at("task_struct", "mm"), self.word)
        code.store_number(FP, self.small, 1)
        self.update(code, "holders", self.word, self.small)
        code.jump_if(0, "==", 0, "out")
        self._set_state(code, _EVERYBODY)

    def _set_state(self, code: Program, slot: int) -> None:
        self.state(code, slot, "out")
        code.store_number(0, 0, 1)
