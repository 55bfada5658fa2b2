"""Compile ``bpf/*.bpf.c`` with bcc: the only importer of it.

That happens in a short-lived child (``python -m active_restore.ebpf.compiler``): the agent never holds a compiler in memory,
and bcc may change the working directory and print as it likes.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from active_restore.ebpf import abi, headers, maps, objects
from active_restore.ebpf.objects import Object, Table
from active_restore.errors import CapabilityMissing
from active_restore.linux.process import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

_TIMEOUT_S = 120
_LOG_LINES = 12
_MISSING = "missing: "
# A map of maps names the one that its elements are like behind its type, and itself as its fourth argument.
_OF_MAPS = re.compile(r"_of_maps\$(\w+)\"(?:,[^,()]*){2},\s*(\w+)")


class ProgramError(CapabilityMissing):
    """A program cannot be compiled, or this kernel does not take it. The hint holds the end of the log."""

    code = "bpf_program"


def compile_program(name: str, tree: Path, machine: str, defines: Mapping[str, int]) -> Object:
    """``bpf/<name>.bpf.c`` for the processor ``machine``; ``tree`` is made by ``headers.write_headers``.

    Raises ``ProgramError``, and ``CapabilityMissing`` where bcc is missing.
    """
    source = abi.source_dir() / f"{name}.bpf.c"
    environment = {
        **os.environ,
        "BCC_KERNEL_SOURCE": str(tree),
        "ARCH": headers.ARCHITECTURES[machine].source_dir,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    answer = os.memfd_create("program")
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps({"source": str(source), "headers": str(tree), "defines": dict(defines), "answer": answer}),
            env=environment,
            pass_fds=[answer],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        with open(answer, "rb", closefd=False) as file:
            file.seek(0)
            compiled = file.read()
    finally:
        os.close(answer)
    if done.returncode == 0 and compiled:
        return Object.unpack(compiled)
    log = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if log and log[-1].startswith(_MISSING):
        raise CapabilityMissing(*json.loads(log[-1].removeprefix(_MISSING)))
    raise ProgramError(f"{source.name} cannot be compiled on this kernel.", "\n".join(log[-_LOG_LINES:]))


def find_bcc() -> None:
    """Raise ``CapabilityMissing`` where the BPF Compiler Collection is missing or hidden by PyPI's unrelated ``bcc``.

    Found without importing it: a compiler in memory is more than an agent should carry.
    """
    hint = "Install the package python3-bpfcc and use the system's Python (or a venv with --system-site-packages)."
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        raise CapabilityMissing("The BPF Compiler Collection is missing (no module bcc).", hint)
    if not Path(spec.origin).with_name("libbcc.py").exists():
        raise CapabilityMissing(f"{spec.origin} is not the BPF Compiler Collection but another module named bcc.", hint)


def _child() -> None:
    """What fails otherwise ends it with a traceback behind bcc's own messages."""
    die_with_parent(signal.SIGKILL)
    build = json.load(sys.stdin)
    try:
        find_bcc()
    except CapabilityMissing as error:
        print(f"\n{_MISSING}{json.dumps([str(error), error.hint])}", flush=True)
        return
    compiled = _compile(build, importlib.import_module("bcc"))
    if compiled is not None:
        os.write(build["answer"], compiled.pack())


def _compile(build: dict[str, Any], bcc: ModuleType) -> Object | None:
    """``None`` where bcc has said why not."""
    flags = [f"-I{Path(build['source']).parent}", f"-I{build['headers']}/include", "-Wall", "-Werror", "-Wno-unused-function"]
    flags += [f"-D{name}={value}" for name, value in build["defines"].items()]
    text = Path(build["source"]).read_bytes()
    array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    lib = bcc.lib
    # Not bcc.BPF: that would load every function, too.
    module = lib.bpf_module_create_c_from_string(text, 0, array, len(flags), True, None)
    if not module:
        return None
    for function in (lib.bpf_table_name, lib.bpf_function_name, lib.bpf_module_license):
        function.restype = ctypes.c_char_p
    tables, indexes = _tables(lib, module, text.decode())
    functions = []
    for number in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, number)
        code = ctypes.string_at(lib.bpf_function_start(module, name), lib.bpf_function_size(module, name))
        functions.append(objects.read_function(name.decode(), code, indexes))
    return Object(tables, functions, lib.bpf_module_license(module))


def _tables(lib: Any, module: Any, text: str) -> tuple[list[Table], dict[int, int]]:
    """The maps that bcc has made for the code, and the index of each by its descriptor."""
    inner = {outer: like for like, outer in _OF_MAPS.findall(text)}
    names = [lib.bpf_table_name(module, number).decode() for number in range(lib.bpf_num_tables(module))]
    names.sort(key=lambda name: (name in inner, name))
    tables, indexes = [], {}
    for index, name in enumerate(names):
        fd = lib.bpf_table_fd(module, name.encode())
        kind, _, key_bytes, value_bytes, entries, map_flags = struct.unpack_from("=6I", maps.info(fd, name))
        like = names.index(inner[name]) if name in inner else -1
        tables.append(Table(name, kind, key_bytes, value_bytes, entries, map_flags, like))
        indexes[fd] = index
    return tables, indexes


if __name__ == "__main__":
    _child()
