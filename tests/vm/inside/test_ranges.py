"""Reads, writes and mappings of a ranged inode are held with the position and length that the system call has."""

from __future__ import annotations

import os
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import abi, maps, program
from active_restore.ebpf.ring import Ring
from active_restore.intercept.pins import Pins, directory
from active_restore.intercept.waits import Wait, Waiters, decode
from active_restore.model import Intent
from tests.vm.inside.territory import python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
_BITS = abi.load().structs["gate_word"]
_RESTORE_ID = "00000000000000aa"


class RangeGate:
    """One file of 8 MiB whose ranges are held; each wait is kept and its range made present."""

    def __init__(self, root: Path, run_dir: Path) -> None:
        device = os.stat(root).st_dev
        defines = {
            "TARGET_DEV": os.major(device) << 20 | os.minor(device),
            "GATE_WORDS": 1024,
            "EXTENT_WORDS": 1024,
            "RING_PAGES": 1,
            "RANGES": 1,
        }
        pins = directory(_RESTORE_ID)
        program.load("gate", program.header_tree(run_dir), pins, defines)
        self._pins = Pins(pins)
        self._extents = maps.Map.pinned(pins / "map_extents")
        self._waiters = Waiters(self._pins.maps["waiters"], self._pins.maps["orders"])
        self._ring = Ring(self._pins.maps["events"])
        self.file = root / "ranged"
        self.file.write_bytes(b"x" * 8 * MIB)
        self.inode = self.file.stat().st_ino
        word = struct.pack("=Q", self.inode // 64)
        self._pins.maps["gate"].put(word, _BITS.pack(ranged=1 << self.inode % 64))
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
                self._extents.put(struct.pack("=QQ", self.inode, 0), struct.pack("=Q", (1 << 64) - 1))
                self._waiters.forget(*wait.key)

    def forget(self) -> None:
        """Nothing of the file is there any more."""
        self.waits.clear()
        self._extents.remove(struct.pack("=QQ", self.inode, 0))

    def end(self) -> None:
        """Unload."""
        self._ending = True
        self._thread.join()
        self._ring.close()
        self._extents.close()
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


_CASES = {
    "read": ("os.lseek(fd, 3 << 20, 0); os.read(fd, 1000)", Intent.READ, (3 * MIB, 1000)),
    "pread": ("os.pread(fd, 500, 5 << 20)", Intent.READ, (5 * MIB, 500)),
    "readv": ("os.lseek(fd, 1 << 20, 0); os.readv(fd, [bytearray(100), bytearray(200)])", Intent.READ, (MIB, 300)),
    "preadv": ("os.preadv(fd, [bytearray(100)] * 3, 2 << 20)", Intent.READ, (2 * MIB, 300)),
    "preadv2": ("os.preadv(fd, [bytearray(9)], 2 << 20, os.RWF_HIPRI)", Intent.READ, (2 * MIB, 9)),
    "sendfile": ("os.sendfile(out, fd, 4 << 20, 1234)", Intent.READ, (4 * MIB, 1234)),
    "splice": ("os.splice(fd, os.pipe()[1], 4096, offset_src=6 << 20)", Intent.READ, (6 * MIB, 4096)),
    "copy_file_range": ("os.copy_file_range(fd, out, 4096, offset_src=7 << 20)", Intent.READ, (7 * MIB, 4096)),
    "mmap": ("mmap.mmap(fd, 8192, prot=mmap.PROT_READ, offset=1 << 20)", Intent.READ, (MIB, 8192)),
    "write": ("os.lseek(fd, 1 << 20, 0); os.write(fd, b'y' * 11)", Intent.WRITE, (MIB, 11)),
    "pwrite": ("os.pwrite(fd, b'y' * 10, 3 << 20)", Intent.WRITE, (3 * MIB, 10)),
    "pwritev": ("os.pwritev(fd, [b'y' * 10] * 2, 3 << 20)", Intent.WRITE, (3 * MIB, 20)),
}


@pytest.mark.parametrize(("call", "intent", "span"), _CASES.values(), ids=_CASES)
def test_range_of(gate: RangeGate, disk: Path, call: str, intent: Intent, span: tuple[int, int]) -> None:
    code = f"""
        import mmap, os, sys
        fd, out = os.open(sys.argv[1], os.O_RDWR), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
        {call}
        print("done")
    """
    assert python(code, gate.file, disk / "out").finish() == "done\n"
    # A thread may be just reporting itself again when its range is made present.
    assert {(wait.intent, wait.range) for wait in gate.waits} == {(intent, span)}


def test_unknown_call_wants_the_whole_file(gate: RangeGate) -> None:
    code = "import os, sys; os.posix_fallocate(os.open(sys.argv[1], os.O_RDWR), 0, 4096); print('done')"
    assert python(code, gate.file).finish() == "done\n"
    assert {(wait.intent, wait.range is None or wait.range[0] == 0) for wait in gate.waits} == {(Intent.WRITE, True)}


def test_behind_the_end_nobody_waits(gate: RangeGate) -> None:
    assert python("import os, sys; print(os.pread(os.open(sys.argv[1], 0), 10, 9 << 20))", gate.file).finish() == "b''\n"
    assert gate.waits == []


def test_what_is_there_is_not_waited_for(gate: RangeGate) -> None:
    code = """
        import os, sys
        fd = os.open(sys.argv[1], os.O_RDONLY)
        for position in range(8): os.pread(fd, 1 << 20, position << 20)
        print("done")
    """
    assert python(code, gate.file).finish() == "done\n"
    assert {wait.range for wait in gate.waits} == {(0, MIB)}
