"""Reads, writes and mappings of a ranged inode are held with the position and length that the system call has."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import abi, growing, program
from active_restore.ebpf.program import Loading
from active_restore.ebpf.ring import Ring
from active_restore.intercept.bpf_ranges import RangedInodes
from active_restore.intercept.gates import Gates
from active_restore.intercept.pins import Pins, directory
from active_restore.intercept.waits import Wait, Waiters, decode
from active_restore.model import TO_THE_END, Gate, Intent
from active_restore.presence import Presence
from tests.cli.machine import ROOT
from tests.kernel.disks import restore_id_of
from tests.vm.inside.territory import python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
SIZE = 300 * MIB + 5000
_BITS = abi.load().structs["gate_word"]


class RangeGate:
    """One file whose ranges are held; each wait is kept and its range made present."""

    def __init__(self, root: Path, run_dir: Path) -> None:
        device = os.stat(root).st_dev
        loading = Loading(
            defines={"RANGES": 1},
            numbers={"LOADED_TARGET": os.major(device) << 20 | os.minor(device)},
            entries={"gate": 1024},
        )
        pins = directory(restore_id_of(root))
        program.load("gate", pins, loading)
        growing.load(pins)
        self._pins = Pins(pins)
        self._waiters = Waiters(self._pins.maps["waiters"], self._pins.maps["orders"])
        self._ring = Ring(self._pins.maps["events"])
        (root / "lower").mkdir()
        self.file = root / "lower" / "ranged"
        self.file.write_bytes(b"x" * MIB)
        os.truncate(self.file, SIZE)
        self.inode = self.file.stat().st_ino
        ranged = RangedInodes.pinned(pins)
        held = ranged.hold(self.inode, SIZE)
        assert held is not None
        self.presence = Presence(held[0], SIZE)
        self._ranged = ranged
        self.huge = root / "lower" / "huge"
        self.huge.touch()
        os.truncate(self.huge, 3 << 30)
        self._huge_inode = self.huge.stat().st_ino
        assert ranged.hold(self._huge_inode, 3 << 30)
        # Whoever opens it is somebody else's business.
        self._pins.set_state("STATE_GUARD", os.getpid())
        self._gates = Gates(self._pins.maps["gate"], _BITS)
        self._gates.by_range(self.inode)
        self._gates.by_range(self._huge_inode)
        self.waits: list[Wait] = []
        self._ending = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending:
            self._pins.beat()
            for event in self._ring.read(100):
                wait = decode(event)
                self.waits.append(wait)
                self._fill(wait)
                self._waiters.forget(*wait.key)

    def _fill(self, wait: Wait) -> None:
        if wait.inode == self._huge_inode:
            self._gates.open(wait.inode, Gate.ALL)
            return
        if wait.intent is not Intent.READ:
            self.presence.touch()
        if wait.intent in (Intent.WHOLE, Intent.TRUNCATE):
            self._gates.open(self.inode, Gate.ALL)
        first, last = (0, self.presence.pages) if wait.range is None else self.presence.clip(*wait.range)
        self.presence.add(first, min(last, self.presence.pages))

    def forget(self, *, windows: bool = False) -> None:
        """Nothing of the file is there any more. ``windows``: whether a mapping waits just for what it shows."""
        self._pins.set_state("STATE_WINDOWS", windows)
        self.waits.clear()
        self.presence.forget()
        self.presence.describe()
        self._gates.by_range(self.inode)

    def end(self) -> None:
        """Unload."""
        self._ending = True
        self._thread.join()
        self._ring.close()
        self._ranged.close()
        self._pins.remove()
        self._pins.close()


@pytest.fixture(scope="module")
def module_gate(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RangeGate]:
    """The programs with ranges, loaded once."""
    gate = RangeGate(disk, tmp_path_factory.mktemp("run"))
    yield gate
    gate.end()


@pytest.fixture
def gate(module_gate: RangeGate) -> RangeGate:
    """A file of which nothing is there."""
    module_gate.forget()
    return module_gate


@pytest.fixture
def window_gate(module_gate: RangeGate) -> RangeGate:
    """The same; mappings wait for their part, as long as they do not grow."""
    module_gate.forget(windows=True)
    return module_gate


_CASES = {
    "read": ("os.lseek(fd, 3 << 20, 0); os.read(fd, 1000)", Intent.READ, (3 * MIB, 1000)),
    "pread": ("os.pread(fd, 500, 5 << 20)", Intent.READ, (5 * MIB, 500)),
    "readv": ("os.lseek(fd, 1 << 20, 0); os.readv(fd, [bytearray(100), bytearray(200)])", Intent.READ, (MIB, 300)),
    "preadv": ("os.preadv(fd, [bytearray(100)] * 30, 2 << 20)", Intent.READ, (2 * MIB, 3000)),
    "preadv2": ("os.preadv(fd, [bytearray(9)], 2 << 20, os.RWF_HIPRI)", Intent.READ, (2 * MIB, 9)),
    "sendfile": ("os.sendfile(out, fd, 4 << 20, 1234)", Intent.READ, (4 * MIB, 1234)),
    "splice": ("os.splice(fd, os.pipe()[1], 4096, offset_src=6 << 20)", Intent.READ, (6 * MIB, 4096)),
    "copy_file_range": ("os.copy_file_range(fd, out, 4096, offset_src=7 << 20)", Intent.READ, (7 * MIB, 4096)),
    "mmap": ("mmap.mmap(ro, 8192, prot=mmap.PROT_READ, offset=1 << 20)", Intent.READ, (MIB, TO_THE_END)),
    "private mmap": ("mmap.mmap(fd, 8192, mmap.MAP_PRIVATE, offset=1 << 20)", Intent.READ, (MIB, TO_THE_END)),
    "shared mmap": ("mmap.mmap(fd, 8192, prot=mmap.PROT_READ, offset=1 << 20)", Intent.MAP, (0, TO_THE_END)),
    "write": ("os.lseek(fd, 1 << 20, 0); os.write(fd, b'y' * 11)", Intent.CHANGE, (MIB, 11)),
    "pwrite": ("os.pwrite(fd, b'y' * 10, 3 << 20)", Intent.CHANGE, (3 * MIB, 10)),
    "pwritev": ("os.pwritev(fd, [b'y' * 10] * 2, 3 << 20)", Intent.CHANGE, (3 * MIB, 20)),
    "sendfile to it": ("os.lseek(fd, 9, 0); os.sendfile(fd, true, 0, 10)", Intent.CHANGE, (9, 10)),
    "splice to it": ("r, w = os.pipe(); os.write(w, b'n'); os.splice(r, fd, 1, offset_dst=5000)", Intent.CHANGE, (5000, 1)),
    # Calls that may make holes, and those of which the range is not known.
    "copy_file_range to it": ("os.write(out, b'123'); os.copy_file_range(out, fd, 3, 0, 5000)", Intent.WHOLE, None),
    "fallocate": ("os.posix_fallocate(fd, 0, 4096)", Intent.WHOLE, None),
    "ftruncate": ("os.ftruncate(fd, 300 << 20)", {Intent.WHOLE, Intent.TRUNCATE}, None),
    "truncate": ("os.truncate(sys.argv[1], 300 << 20)", {Intent.WHOLE, Intent.TRUNCATE}, None),
    "aio": ("rings.Aio().read(fd, 100, 5000)", Intent.WHOLE, None),
    "very many buffers": ("os.preadv(fd, [bytearray(1)] * 100, 2 << 20)", Intent.WHOLE, None),
}
_CODE = f"""
import mmap, os, sys
sys.path.insert(0, {str(ROOT / "tests" / "ranges")!r})
import rings
fd, out = os.open(sys.argv[1], os.O_RDWR), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
ro, true = os.open(sys.argv[1], os.O_RDONLY), os.open("/bin/true", os.O_RDONLY)
"""


_SAMPLED = ("pread", "mmap", "shared mmap", "pwrite", "copy_file_range to it", "grown", "elsewhere")


@pytest.mark.parametrize(
    ("call", "intents", "span"),
    [pytest.param(*case, id=name, marks=[pytest.mark.ci("6.12")] if name in _SAMPLED else []) for name, case in _CASES.items()],
)
def test_range_of(gate: RangeGate, disk: Path, call: str, intents: Intent | set[Intent], span: tuple[int, int] | None) -> None:
    assert python(f"{_CODE}\n{call}\nprint('done')", gate.file, disk / "out").finish() == "done\n"
    # A thread may be just reporting itself again when its range is made present.
    waits = {(wait.intent, wait.range) for wait in gate.waits}
    assert waits in [{(intent, span)} for intent in (intents if isinstance(intents, set) else {intents})]
    os.truncate(gate.file, SIZE)


# What a mapping shows, and what it shows next. Most may wait; where the kernel would take no error for an order to do it again,
# the call fails until the file is there, which is asked for at once.
_WINDOWS = {
    "read only": ("mmap.mmap(ro, 8192, prot=mmap.PROT_READ, offset=1 << 20)", {(Intent.READ, (MIB, 8192))}),
    "private": ("mmap.mmap(fd, 8192, mmap.MAP_PRIVATE, offset=1 << 20)", {(Intent.READ, (MIB, 8192))}),
    "shared": ("mmap.mmap(fd, 8192, prot=mmap.PROT_READ, offset=1 << 20)", {(Intent.MAP, (0, 2 * MIB))}),
    "grown": (
        "maps.grown(ro, 1 << 20, 20480, mmap.MAP_SHARED)",
        {(Intent.READ, (MIB, 4096)), (Intent.READ, (MIB, 20480))},
    ),
    "written and grown": (
        "maps.grown(fd, (2 << 20) - 4096, 20480, mmap.MAP_SHARED)",
        {(Intent.MAP, (0, 2 * MIB)), (Intent.MAP, (0, 4 * MIB))},
    ),
    "doubled": (
        "maps.doubled(ro, 1 << 20, 20480, mmap.MAP_SHARED)",
        {(Intent.READ, (MIB, 4096)), (Intent.READ, (MIB, 20480))},
    ),
    "the end of it": (
        "a = libc.mmap(None, 8192, 1, 1, ro, 1 << 20)\nassert libc.mremap(a + 4096, 4096, 20480, 1, None) > 0",
        {(Intent.READ, (MIB, 8192)), (Intent.READ, (MIB + 4096, 20480))},
    ),
    "by a child": (
        "a = libc.mmap(None, 4096, 1, 2, ro, 1 << 20)\npid = os.fork()\n"
        "if pid: sys.exit(os.waitpid(pid, 0)[1])\nassert libc.mremap(a, 4096, 20480, 1, None) > 0",
        {(Intent.READ, (MIB, 4096)), (Intent.READ, (MIB, 20480))},
    ),
    "elsewhere": (
        "with maps.elsewhere(fd, 1 << 20, 7 << 20) as view: assert len(view) == 4096",
        {(Intent.MAP, (0, 2 * MIB)), (Intent.MAP, (6 * MIB, 2 * MIB))},
    ),
    "in place": (
        "room = libc.mmap(None, 1 << 20, 0, 0x22, -1, 0)\nlibc.munmap(room, 1 << 20)\n"
        "a = libc.mmap(room, 4096, 1, 1, ro, 1 << 20)\nprint(maps._patiently(a, 4096, 20480, 0, None) == a)",
        {(Intent.READ, (MIB, 4096)), (Intent.WHOLE, None)},
    ),
    "to a place": (
        "room = libc.mmap(None, 1 << 20, 0, 0x22, -1, 0)\na = libc.mmap(None, 4096, 1, 1, ro, 1 << 20)\n"
        "maps._patiently(a, 4096, 20480, 3, room)",
        {(Intent.READ, (MIB, 4096)), (Intent.WHOLE, None)},
    ),
    "by a 32-bit call": (
        "a = libc.mmap(None, 4096, 1, 0x41, ro, 1 << 20)\n"
        "while (b := int80(163, a, 4096, 20480, 1, 0)) in (-11, -12): os.sched_yield()\nassert b > 0 or b < -4096",
        {(Intent.READ, (MIB, 4096)), (Intent.WHOLE, None)},
    ),
    "made shorter, and moved": (
        "a = libc.mmap(None, 8192, 1, 2, ro, 1 << 20)\nassert libc.mremap(a, 8192, 4096, 1, None) == a\n"
        "assert libc.mremap(a, 4096, 4096, 3, libc.mmap(None, 4096, 0, 0x22, -1, 0)) > 0",
        {(Intent.READ, (MIB, 8192))},
    ),
    "something else grows": (
        "m = mmap.mmap(ro, 4096, prot=mmap.PROT_READ, offset=1 << 20)\na = libc.mmap(None, 4096, 3, 0x22, -1, 0)\n"
        "for _ in range(1000): a = libc.mremap(a, 4096, 1 << 20, 1, None); libc.mremap(a, 1 << 20, 4096, 1, None)",
        {(Intent.READ, (MIB, 4096))},
    ),
}
_GROWING = f"""{_CODE}
import ctypes, maps
from maps import libc
# push rbx; eax = 1st, ebx = 2nd, ecx = 3rd, edx = 4th, esi = 5th, edi = 6th; int 0x80; pop rbx; ret
_call = mmap.mmap(-1, 4096, prot=7)
_call.write(bytes.fromhex("53 89f8 89f3 87d1 4489c6 4489cf cd80 5b c3"))
int80 = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint] * 6)(ctypes.addressof(ctypes.c_char.from_buffer(_call)))
"""


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.ci("6.12")] if name in _SAMPLED else [])
        for name, case in _WINDOWS.items()
    ],
)
def test_window(window_gate: RangeGate, disk: Path, call: str, waits: set[tuple[Intent, tuple[int, int] | None]]) -> None:
    environment = "os.environ['ACTIVE_RESTORE_TEST_INTERCEPTORS'] = 'bpf'"
    code = f"import os\n{environment}\n{_GROWING}\n{call}\nprint('done')"
    assert python(code, window_gate.file, disk / "out").finish().endswith("done\n")
    assert {(wait.intent, wait.range) for wait in window_gate.waits} == waits


def test_more_than_can_be_looked_at_is_all(window_gate: RangeGate) -> None:
    code = "import mmap, os, sys; mmap.mmap(os.open(sys.argv[1], 0), 5 << 29, prot=1, offset=1 << 28); print('done')"
    assert python(code, window_gate.huge).finish() == "done\n"
    assert {(wait.intent, wait.range) for wait in window_gate.waits} == {(Intent.WHOLE, None)}


def test_hole_by_a_mapping(gate: RangeGate) -> None:
    """MADV_REMOVE of what is mapped punches the file."""
    code = """
        import mmap, os, sys
        view = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 8192, offset=1 << 20)
        view.madvise(mmap.MADV_REMOVE, 0, 4096)
        print("done")
    """
    assert python(code, gate.file).finish() == "done\n"
    waits = list(dict.fromkeys((wait.intent, wait.range) for wait in gate.waits))
    assert waits == [(Intent.MAP, (0, TO_THE_END)), (Intent.WHOLE, None)]


def test_behind_the_end_nobody_waits(gate: RangeGate) -> None:
    assert python("import os, sys; print(os.pread(os.open(sys.argv[1], 0), 10, 400 << 20))", gate.file).finish() == "b''\n"
    assert gate.waits == []


@pytest.mark.ci("6.12")
def test_what_is_there_is_not_waited_for(gate: RangeGate) -> None:
    """Single pages, groups of them, and all; and the first writer is told of."""
    pages = gate.presence.pages
    gate.presence.add(1000, pages)
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDWR)
        for first, last in eval(sys.argv[2]):
            for piece in range(first, last, 50_000):
                os.preadv(fd, [bytearray(min(last - piece, 50_000) * 4096)], piece * 4096)
        os.sendfile(os.memfd_create("x"), fd, 1000 * 4096, 1 << 40)
        for _ in range(2): os.pwrite(fd, b"n", 2000 * 4096)
        os.pread(fd, 300 * 4096, 900 * 4096)
        print("done")
    """
    spans = [(1000, 1001), (1000, 1024), (1001, 1280), (1000, 2000), (1023, 1025), (70_000, pages), (1000, pages)]
    assert python(code, gate.file, repr(spans)).finish() == "done\n"
    waits = {(wait.intent, wait.range) for wait in gate.waits}
    assert waits == {(Intent.CHANGE, (2000 * 4096, 1)), (Intent.READ, (900 * 4096, 300 * 4096))}


def test_of_a_file_system_above_all_is_wanted(gate: RangeGate, disk: Path) -> None:
    """Whoever opens the lower file of an overlay may map it, which nobody sees."""
    for name in ("upper", "work", "merged"):
        (disk / name).mkdir()
    options = f"lowerdir={disk}/lower,upperdir={disk}/upper,workdir={disk}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, disk / "merged"], check=True)
    try:
        path = disk / "merged" / gate.file.name
        assert python("import os, sys; print(os.pread(os.open(sys.argv[1], 0), 2, 700_000))", path).finish() == "b'xx'\n"
    finally:
        subprocess.run(["umount", disk / "merged"], check=True)
    assert {(wait.intent, wait.range) for wait in gate.waits} == {(Intent.WHOLE, None)}
