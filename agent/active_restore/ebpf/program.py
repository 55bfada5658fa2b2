"""Compile ``bpf/*.bpf.c`` with bcc, load, attach and pin it: the only importer of bcc.

All of that happens in a short-lived child (``python -m active_restore.ebpf.program``), and the agent takes the pinned
maps and links. So the agent never holds a compiler in memory, bcc may change the working directory and print as it
likes, and a fresh start takes the same way as the adoption after a crash.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import importlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from active_restore.ebpf import abi, headers, maps
from active_restore.ebpf.btf import read_kernel
from active_restore.errors import CapabilityMissing
from active_restore.linux import bpffs
from active_restore.linux.process import die_with_parent, is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

_TIMEOUT_S = 120
_LOG_LINES = 12


class Step(enum.StrEnum):
    """How far to go."""

    COMPILE = "compile"
    PIN = "pin"


class ProgramError(CapabilityMissing):
    """A program cannot be compiled, or this kernel does not take it. The hint holds the end of the log."""

    code = "bpf_program"


@dataclass(frozen=True, slots=True)
class Build:
    """What the child needs. ``pins`` is a directory in bpffs that does not exist yet (``None`` for ``Step.COMPILE``)."""

    source: str
    include: str
    headers: str
    step: Step
    pins: str | None
    defines: Mapping[str, int]


def load(name: str, tree: Path, pins: Path, defines: Mapping[str, int]) -> None:
    """Load and attach ``bpf/<name>.bpf.c`` and pin its maps (``map_*``), programs and links (``link_*``) in ``pins``.

    ``tree`` is made by ``headers.write_headers``. The directory appears whole or not at all.
    Raises ``ProgramError``, and ``CapabilityMissing`` where bcc is missing.
    """
    _run(_build(name, tree, defines, Step.PIN, str(pins)), platform.machine())


def compile_only(name: str, tree: Path, machine: str, defines: Mapping[str, int]) -> None:
    """Compile for the processor ``machine`` and stop before the kernel's verifier. Raises as ``load`` does."""
    _run(_build(name, tree, defines, Step.COMPILE, None), machine)


def header_tree(cache_dir: Path) -> Path:
    """``headers.write_headers`` for this machine. Raises ``BtfError`` where its kernel has no BTF."""
    return headers.write_headers(read_kernel(), platform.machine(), cache_dir)


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


@contextlib.contextmanager
def held(name: str, label: str, cache_dir: Path, defines: Mapping[str, int]) -> Iterator[Path]:
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
    load(name, header_tree(cache_dir), pins, defines)
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


def _build(name: str, tree: Path, defines: Mapping[str, int], step: Step, pins: str | None) -> Build:
    directory = abi.source_dir()
    return Build(str(directory / f"{name}.bpf.c"), str(directory), str(tree), step, pins, defines)


def _run(build: Build, machine: str) -> None:
    package = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "BCC_KERNEL_SOURCE": build.headers,
        "ARCH": headers.ARCHITECTURES[machine].source_dir,
        "PYTHONPATH": str(package),
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(asdict(build)),
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
        if answer["missing"]:
            raise CapabilityMissing(*answer["missing"])
        if answer["done"]:
            return
    log = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() and not line.startswith('{"missing"')]
    raise ProgramError(
        f"{Path(build.source).name} cannot be {'compiled' if build.step is Step.COMPILE else 'loaded'} on this kernel.",
        "\n".join(log[-_LOG_LINES:]),
    )


def _child() -> None:
    """The child's last line is its answer; what fails otherwise ends it with a traceback behind bcc's own messages."""
    die_with_parent(signal.SIGKILL)
    build = json.load(sys.stdin)
    missing: tuple[str, str] | None = None
    done = False
    try:
        find_bcc()
        done = _build_all(build, importlib.import_module("bcc"))
    except CapabilityMissing as error:
        missing = (str(error), error.hint)
    print(f"\n{json.dumps({'missing': missing, 'done': done})}", flush=True)


def _build_all(build: dict[str, Any], bcc: ModuleType) -> bool:
    flags = [f"-I{build['include']}", f"-I{build['headers']}/include", "-Wall", "-Werror", "-Wno-unused-function"]
    flags += [f"-D{name}={value}" for name, value in build["defines"].items()]
    text = Path(build["source"]).read_bytes()
    if build["step"] == Step.PIN:
        _pin(bcc.BPF(text=text, cflags=flags), bcc, Path(build["pins"]))
        return True
    return _compile(bcc, text, flags)


def _compile(bcc: ModuleType, text: bytes, flags: list[str]) -> bool:
    """BPF() would load every function, too."""
    array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    return bool(bcc.lib.bpf_module_create_c_from_string(text, 0, array, len(flags), True, None))


def _pin(module: Any, bcc: ModuleType, pins: Path) -> None:
    """Maps first, links last, all in a directory that gets its name when it is complete."""
    pins.parent.mkdir(parents=True, exist_ok=True)
    # bpffs refuses names with a dot.
    scratch = pins.with_name(f"{pins.name}-{os.getpid()}")
    scratch.mkdir()
    try:
        for name in _table_names(module, bcc):
            # Not module[name]: bcc has no class for the storage of inodes.
            maps.pin(bcc.lib.bpf_table_fd(module.module, name), scratch / f"map_{name.decode()}")
        for fds in (module.lsm_fds, module.raw_tracepoint_fds):
            for name, fd in fds.items():
                maps.pin(fd, scratch / f"link_{name.decode().removeprefix('raw_tracepoint__').removeprefix('lsm__')}")
        scratch.rename(pins)
    except BaseException:
        unpin(scratch)
        raise


def _table_names(module: Any, bcc: ModuleType) -> list[bytes]:
    bcc.lib.bpf_table_name.restype = ctypes.c_char_p
    return [bcc.lib.bpf_table_name(module.module, index) for index in range(bcc.lib.bpf_num_tables(module.module))]


if __name__ == "__main__":
    _child()
