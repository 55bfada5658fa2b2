"""BPF programs instruction by instruction, for the few that bcc cannot compile: those with a callback, and those that must load
where no compiler is.

Instruction set: Linux ``Documentation/bpf/standardization/instruction-set.rst``. Registers are numbers, ``FP`` is the frame
pointer; helpers are numbers of ``enum bpf_func_id`` (uapi/linux/bpf.h).
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple, Self

from active_restore.ebpf import maps

if TYPE_CHECKING:
    from active_restore.ebpf.maps import Map

FP = 10
_TYPE_RAW_TRACEPOINT, _TYPE_TRACING = 17, 26
FENTRY, FEXIT = 24, 25
"""Where a program is called: before a function of the kernel, behind it."""
_PSEUDO_MAP, _PSEUDO_FUNC = 1, 4
_INSTRUCTION = struct.Struct("=BBhi")
_WIDTHS = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_OPERATIONS = {"add": 0x00, "sub": 0x10, "and": 0x50, "lsh": 0x60, "rsh": 0x70, "mov": 0xB0}
_TESTS = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "<=": 0xB0}


class _Instruction(NamedTuple):
    code: int
    to: int = 0
    source: int = 0
    offset: int = 0
    number: int = 0
    label: str = ""


class Program:
    """Written from its first instruction to its last. ``helpers`` are by number; a jump names a ``label``."""

    def __init__(self) -> None:
        self._code: list[_Instruction] = []
        self._labels: dict[str, int] = {}
        self._callback = -1

    def label(self, name: str) -> Self:
        """Jumps to this name come here."""
        self._labels[name] = len(self._code)
        return self

    def callback(self) -> Self:
        """What follows is a function of its own, which ``address_of_callback`` names."""
        self._callback = len(self._code)
        return self

    def do(self, what: str, to: int, number: int) -> Self:
        """``to = to WHAT number``, in 64 bits."""
        return self._add(0x07 | _OPERATIONS[what], to, number=number)

    def do_register(self, what: str, to: int, source: int) -> Self:
        """``to = to WHAT source``."""
        return self._add(0x0F | _OPERATIONS[what], to, source)

    def load(self, to: int, source: int, offset: int, width: int = 8) -> Self:
        """``to = *(source + offset)``."""
        return self._add(0x61 | _WIDTHS[width], to, source, offset)

    def store(self, to: int, offset: int, source: int, width: int = 8) -> Self:
        """``*(to + offset) = source``."""
        return self._add(0x63 | _WIDTHS[width], to, source, offset)

    def store_number(self, to: int, offset: int, number: int, width: int = 8) -> Self:
        """``*(to + offset) = number``."""
        return self._add(0x62 | _WIDTHS[width], to, offset=offset, number=number)

    def jump(self, label: str) -> Self:
        """Always."""
        return self._add(0x05, label=label)

    def jump_if(self, left: int, test: str, number: int, label: str) -> Self:
        """Where ``left TEST number``, without signs."""
        return self._add(0x05 | _TESTS[test], left, number=number, label=label)

    def jump_if_register(self, left: int, test: str, right: int, label: str) -> Self:
        """Where ``left TEST right``."""
        return self._add(0x0D | _TESTS[test], left, right, label=label)

    def call(self, helper: int) -> Self:
        """Its arguments are in 1 to 5, its result comes in 0; 6 to 9 stay as they are."""
        return self._add(0x85, number=helper)

    def load_map(self, to: int, which: Map) -> Self:
        """The address of a map, for helpers."""
        return self._add(0x18, to, _PSEUDO_MAP, number=which.fd)._add(0)

    def load_callback(self, to: int) -> Self:
        """The address of the callback, for helpers."""
        return self._add(0x18, to, _PSEUDO_FUNC, label="callback")._add(0)

    def end(self, result: int = 0) -> Self:
        """Return."""
        return self.do("mov", 0, result)._add(0x95)

    def _add(self, code: int, to: int = 0, source: int = 0, offset: int = 0, number: int = 0, label: str = "") -> Self:
        self._code.append(_Instruction(code, to, source, offset, number, label))
        return self

    def _packed(self) -> bytes:
        packed = b""
        for at, (code, to, source, offset, number, label) in enumerate(self._code):
            if label == "callback":
                number = self._callback - at - 1
            elif label:
                offset = self._labels[label] - at - 1
            packed += _INSTRUCTION.pack(code, to | source << 4, offset, number)
        return packed

    def attach(self, to: str, kind: int = 0, function_id: int = 0) -> int:
        """A link to a raw tracepoint, or to a function (``kind`` is FENTRY or FEXIT, and its id in the kernel's BTF).

        The program lives as long as it is open or pinned. Raises ``OSError``.
        """
        # What is loaded with a callback must say where its functions begin.
        starts = [0] if self._callback < 0 else [0, self._callback]
        functions = b"".join(struct.pack("=II", start, 3 + number) for number, start in enumerate(starts))
        types = maps.load_types()
        try:
            program = maps.load_program(
                _TYPE_TRACING if kind else _TYPE_RAW_TRACEPOINT,
                self._packed(),
                f"ar_{to}",
                attach=(kind, function_id),
                functions=(types, functions),
            )
        finally:
            os.close(types)
        try:
            return maps.attach(program, to, is_hook=kind != 0)
        finally:
            os.close(program)
