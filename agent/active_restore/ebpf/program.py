"""Load, attach and pin the programs of ``bpf/*.bpf.c``: from what was kept of them, or from the compiler.

All is pinned at once and taken from there, so that a fresh start takes the same way as the adoption after a crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from typing import TYPE_CHECKING, NamedTuple

from active_restore.ebpf import abi, compiler, headers, kept, maps, objects
from active_restore.ebpf.btf import Btf, read_kernel
from active_restore.ebpf.compiler import ProgramError
from active_restore.linux import bpffs
from active_restore.linux.process import is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from active_restore.ebpf.objects import Function, Object

_TYPE_RAW_TRACEPOINT, _TYPE_LSM = 17, 29
_ATTACH_LSM_MAC = 27
_PREFIXES = {"lsm__": _TYPE_LSM, "raw_tracepoint__": _TYPE_RAW_TRACEPOINT}


class Loading(NamedTuple):
    """What a program is loaded with. ``defines`` are known to its compiler; ``numbers`` are those of ``enum loaded``.

    ``entries``: how many a map has, where that is not in the source.
    """

    defines: Mapping[str, int] = {}
    numbers: Mapping[str, int] = {}
    entries: Mapping[str, int] = {}


def load(name: str, pins: Path, loading: Loading) -> None:
    """Load and attach ``bpf/<name>.bpf.c`` and pin its maps (``map_*``) and links (``link_*``) in ``pins``.

    The directory appears whole or not at all. Raises ``ProgramError``, ``CapabilityMissing`` where bcc is missing and
    nothing was kept, ``BtfError`` where the kernel has no BTF or lacks what the program needs.
    """
    program = _compiled(name, loading.defines)
    numbers = {abi.load().constants[number]: value for number, value in loading.numbers.items()}
    used = {number for function in program.functions for _, number in function.numbers}
    if used != numbers.keys():
        raise ValueError(f"{name}: these numbers are given: {sorted(loading.numbers)}, and others are used")
    try:
        _pin(program, pins, numbers, loading.entries)
    except OSError as error:
        raise ProgramError(f"{name}.bpf.c cannot be loaded on this kernel.", f"{error.filename}: {error.strerror}") from error


@contextlib.contextmanager
def held(name: str, label: str, loading: Loading) -> Iterator[Path]:
    """The pins of ``bpf/<name>.bpf.c`` for as long as the block lasts, to take descriptors of.

    Those keep maps and links from then on, so nothing outlives this process. What one left that was killed in such a block is
    removed first. Raises as ``load`` does, and ``OSError`` where bpffs cannot be mounted.
    """
    place = bpffs.mount() / "active_restore"
    for left in place.glob(f"{name}_*"):
        pid = left.name.rpartition("_")[2]
        if pid.isdigit() and not is_alive(int(pid)):
            unpin(left)
    pins = place / f"{name}_{label}_{os.getpid()}"
    load(name, pins, loading)
    try:
        yield pins
    finally:
        unpin(pins)
        with contextlib.suppress(OSError):
            place.rmdir()


def unpin(pins: Path) -> None:
    """Remove what ``load`` pinned: hooks end first, then their maps. Nothing happens where nothing is left."""
    if pins.is_dir():
        for name in sorted(pins.iterdir()):
            name.unlink()
        pins.rmdir()


def _compiled(name: str, defines: Mapping[str, int]) -> Object:
    btf = read_kernel()
    key = _key(name, defines, btf)
    with kept.directory() as place:
        found = kept.find(place, key)
        if found is None:
            tree = headers.write_headers(btf, platform.machine(), place)
            found = _hooked(compiler.compile_program(name, tree, platform.machine(), defines), Btf(btf))
            kept.keep(place, key, found)
    return found


def _key(name: str, defines: Mapping[str, int], btf: bytes) -> str:
    """A hash of all that the compiled program depends on; the compiler's own version is not part of it."""
    told = hashlib.sha256(headers.recipe(platform.machine()))
    for path in (*sorted(abi.source_dir().glob("*.h")), abi.source_dir() / f"{name}.bpf.c"):
        told.update(hashlib.sha256(path.read_bytes()).digest())
    told.update(repr((objects.FORMAT, sorted(defines.items()))).encode())
    told.update(hashlib.sha256(btf).digest())
    return f"{name}-{told.hexdigest()[:32]}"


def _hooked(program: Object, btf: Btf) -> Object:
    """With the hooks as this kernel numbers them."""
    functions = [
        function._replace(hook=btf.function_id(f"bpf_lsm_{_target(function)}") if _kind(function) == _TYPE_LSM else 0)
        for function in program.functions
    ]
    return program._replace(functions=functions)


def _kind(function: Function) -> int:
    return next(kind for prefix, kind in _PREFIXES.items() if function.name.startswith(prefix))


def _target(function: Function) -> str:
    return function.name.partition("__")[2]


def _pin(program: Object, pins: Path, numbers: Mapping[int, int], entries: Mapping[str, int]) -> None:
    """Maps first, links last, all in a directory that gets its name when it is complete."""
    pins.parent.mkdir(parents=True, exist_ok=True)
    # bpffs refuses names with a dot.
    scratch = pins.with_name(f"{pins.name}-{os.getpid()}")
    scratch.mkdir()
    try:
        with contextlib.ExitStack() as made:
            tables = objects.create_tables(program.tables, entries)
            for table in tables:
                made.callback(table.close)
            loaded: list[tuple[Function, int]] = []
            for function in program.functions:
                code = function.linked([table.fd for table in tables], numbers)
                attach = _ATTACH_LSM_MAC if function.hook else 0
                fd = maps.load_program(_kind(function), code, function.name, program.licence, (attach, function.hook))
                made.callback(os.close, fd)
                loaded.append((function, fd))
            for table in tables:
                maps.pin(table.fd, scratch / f"map_{table.name}")
            # All are loaded before the first one holds anybody.
            for function, fd in loaded:
                link = maps.attach(fd, _target(function), is_hook=function.hook != 0)
                made.callback(os.close, link)
                maps.pin(link, scratch / f"link_{_target(function)}")
        scratch.rename(pins)
    except BaseException:
        unpin(scratch)
        raise
