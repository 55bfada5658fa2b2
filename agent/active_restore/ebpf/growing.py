"""Programs beside those of ``bpf/gate.bpf.c``: what a mapping is of that a task is about to make show more.

mremap(2) and remap_file_pages(2) ask the security modules just whether an address may be used (``mmap_addr``), with the address
space locked, so that nobody can look at the mapping any more. So these look when the call begins, and leave what they found in
the map ``growing``, where the gate's hook finds it. They are on these calls alone: others cost nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from active_restore.ebpf import abi, maps
from active_restore.ebpf.assembly import FENTRY, FP, Program
from active_restore.ebpf.btf import Btf, read_kernel
from active_restore.ebpf.mappings import DELETE, FOUND, PID, Calls, MappingWriter, Offsets
from active_restore.ebpf.maps import Map

if TYPE_CHECKING:
    from pathlib import Path

_MAPS = ("mappers", "growing", "state")
_TAG_BITS = 8


def load(pins: Path) -> None:
    """Load them for the gate with these pins, and pin them there. Raises ``CapabilityMissing`` and ``OSError``."""
    writer = _Writer({name: Map.pinned(pins / f"map_{name}") for name in _MAPS}, Offsets(Btf(read_kernel())))
    links: list[tuple[str, int]] = []
    try:
        # All of them first: the gate is told when they are pinned.
        for call in ("mremap", "remap_file_pages"):
            for name, calls in zip(writer.at.functions(call), (writer.at.here, writer.at.compat), strict=False):
                assert calls is not None
                program = writer.begin(calls, remaps=call != "mremap", is_compat=calls is writer.at.compat)
                links.append((name, program.attach(name, FENTRY, writer.at.btf.function_id(name))))
        for name, link in links:
            maps.pin(link, pins / f"link_{name.lstrip('_')}")
    finally:
        for _, link in links:
            os.close(link)
        for each in writer.maps.values():
            each.close()


class _Writer(MappingWriter):
    """What is found is the value of ``growing`` as it lies on the stack (``struct growing`` of ``bpf/events.h``)."""

    def __init__(self, found: dict[str, Map], offsets: Offsets) -> None:
        super().__init__(found, offsets, -FOUND.size)
        self._tid = self.small - 8
        self._everybody = abi.load().constants["STATE_EVERYBODY"]

    def begin(self, calls: Calls, *, remaps: bool, is_compat: bool) -> Program:
        """For every call that may make a mapping of a mapper show more; no entry means: not known."""
        width = 4 if is_compat else 8
        code = Program()
        code.load(6, 1, 0)
        self.jump_unless_known(code, "mappers", self._everybody, "out")
        if not remaps and not is_compat:
            # As in the gate, which does not ask for an entry either.
            self.argument(code, 8, calls.arguments[1])
            self.argument(code, 9, calls.arguments[2])
            code.jump_if(8, "==", 0, "look").jump_if_register(9, "<=", 8, "out").label("look")
        self.argument(code, 7, calls.arguments[0], width=width)
        # A tag of the pointer is none of the address.
        code.do("lsh", 7, _TAG_BITS).do("rsh", 7, _TAG_BITS).call(PID).store(FP, self._tid, 0)
        self.find(code, "unknown")
        self.update(code, "growing", self._tid, self.found)
        code.jump_if(0, "==", 0, "out").label("unknown")
        code.load_map(1, self.maps["growing"]).do_register("mov", 2, FP).do("add", 2, self._tid).call(DELETE)
        code.label("out").end()
        return self.describe(code)
