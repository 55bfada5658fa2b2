"""The programs compile for every kernel at hand; those that this kernel takes run; failures are one line and a hint."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import abi, maps, program
from active_restore.ebpf.btf import read_kernel
from active_restore.ebpf.compiler import ProgramError, compile_program
from active_restore.ebpf.headers import write_headers
from active_restore.ebpf.program import Loading
from active_restore.linux import bpffs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("ranges", [0, 1], ids=["whole files", "ranges"])
def test_gate_compiles_here(tmp_path: Path, ranges: int) -> None:
    tree = write_headers(read_kernel(), platform.machine(), tmp_path)
    compiled = compile_program("gate", tree, platform.machine(), {"RANGES": ranges})
    # All look at the device first, but those that look for a thread that they know.
    assert [function.name for function in compiled.functions if not function.numbers] == [
        f"raw_tracepoint__sched_process_{what}" for what in ("exit", "fork")[: 1 + ranges]
    ]


def test_touch_compiles_here(tmp_path: Path) -> None:
    tree = write_headers(read_kernel(), platform.machine(), tmp_path)
    compile_program("touch", tree, platform.machine(), {})


def test_compiler_errors_are_told(tmp_path: Path) -> None:
    tree = write_headers(read_kernel(), platform.machine(), tmp_path)
    kernel_h = tree / "include/kernel.h"
    kernel_h.write_text(kernel_h.read_text().replace("i_generation", "renamed"))
    before = Path.cwd()
    with pytest.raises(ProgramError, match=r"gate\.bpf\.c cannot be compiled") as caught:
        compile_program("gate", tree, platform.machine(), {"RANGES": 0})
    assert "i_generation" in caught.value.hint
    assert Path.cwd() == before


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = write_headers(read_kernel(), platform.machine(), tmp_path)
    compile_program("block", tree, platform.machine(), {})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("path", "message"),
    [("[{!r}, *sys.path]", "bcc.py is not the BPF Compiler Collection"), ("[sys.path[0]]", "is missing (no module bcc)")],
    ids=["the unrelated bcc", "no bcc"],
)
def test_wrong_bcc(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "bcc.py").write_text("__version__ = '1.0'")
    code = (
        "import sys\n"
        "from active_restore.ebpf import compiler\n"
        "from active_restore.errors import CapabilityMissing\n"
        f"sys.path = {path.format(str(tmp_path))}\n"
        "try: compiler.find_bcc()\n"
        "except CapabilityMissing as error: print(error, error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert message in done.stdout
    assert "python3-bpfcc" in done.stdout


@pytest.fixture
def block_pins(tmp_path: Path) -> Iterator[Path]:
    """The block programs, loaded and pinned."""
    pins = bpffs.mount() / "active_restore_test" / str(os.getpid())
    try:
        program.load("block", pins, Loading())
        yield pins
    finally:
        program.unpin(pins)
        with contextlib.suppress(OSError):
            pins.parent.rmdir()


def _start_ticks() -> int:
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def test_block_load_tells_own_from_foreign(block_pins: Path, tmp_path: Path) -> None:
    own = maps.Map.pinned(block_pins / "map_own")
    own.put(struct.pack("=I", os.getpid()), struct.pack("=Q", _start_ticks()))
    own.close()
    blocks = 16
    image = Path("build") / f"block-test-{os.getpid()}"
    image.parent.mkdir(exist_ok=True)
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, 1 << 20)
        for index in range(blocks):
            os.pwrite(fd, buffer, index << 20)
        subprocess.run(["dd", f"if={image}", "of=/dev/null", "bs=1M", "count=8", "iflag=direct", "status=none"], check=True)
    finally:
        os.close(fd)
        image.unlink()
    devices = maps.Map.pinned(block_pins / "map_devices")
    loads = [abi.load().structs["device_load"].unpack(value) for _, value in devices.items()]
    devices.close()
    # Now and then a worker of the kernel issues a request for us; that counts as foreign.
    assert sum(load["own_bytes"] for load in loads) >= (blocks - 4) << 20
    assert sum(load["foreign_bytes"] for load in loads) >= 8 << 20
    for load in loads:
        assert load["own_completed"] <= load["own_issued"]
        assert sum(load["foreign_latency_us"]) == load["foreign_completed"]
    assert any(load["own_latency_ns"] for load in loads)


def test_pins_appear_whole(block_pins: Path) -> None:
    names = {path.name for path in block_pins.iterdir()}
    links = {f"link_block_rq_{name}" for name in ("insert", "merge", "issue", "complete")}
    assert {*links, "map_devices", "map_own"} <= names
    assert [path.name for path in block_pins.parent.iterdir()] == [block_pins.name]


def test_unpin_leaves_nothing(block_pins: Path) -> None:
    program.unpin(block_pins)
    program.unpin(block_pins)
    assert not block_pins.exists()


def test_map_operations(block_pins: Path) -> None:
    own = maps.Map.pinned(block_pins / "map_own")
    key, value = struct.pack("=I", 1), struct.pack("=Q", 2)
    assert own.get(key) is None
    own.put(key, value, maps.NO_EXIST)
    with pytest.raises(FileExistsError):
        own.put(key, value, maps.NO_EXIST)
    assert own.take(key) == value
    assert not own.remove(key)
    keys = b"".join(struct.pack("=I", index) for index in range(60))
    own.put_many(keys, value * 60, 60)
    assert sorted(own.items(chunk=32)) == sorted((keys[at : at + 4], value) for at in range(0, 240, 4))
    with pytest.raises(OSError, match="Argument list too long"):
        own.put_many(struct.pack("=5I", *range(100, 105)), value * 5, 5)
    with pytest.raises(ValueError, match="a key has 4 bytes"):
        own.get(b"x")
    own.close()


def test_missing_pin() -> None:
    with pytest.raises(FileNotFoundError):
        maps.Map.pinned(bpffs.mount() / "nothing")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``bpf``, and nothing that was compiled before."""
    found = tmp_path / "bpf"
    shutil.copytree(abi.source_dir(), found)
    monkeypatch.setattr(abi, "source_dir", lambda: found)
    monkeypatch.setenv("ACTIVE_RESTORE_CACHE", str(tmp_path / "cache"))
    return found


def test_loading_says_why_not(sources: Path) -> None:
    """The verifier refuses to read beyond the value of a map."""
    (sources / "beyond.bpf.c").write_text(
        "#include <kernel.h>\n"
        "BPF_ARRAY(small, u64, 1);\n"
        "RAW_TRACEPOINT_PROBE(sys_enter) { int key = 0; u64 *value = small.lookup(&key); return value ? value[1] : 0; }\n"
    )
    place = bpffs.mount() / "active_restore_test" / f"beyond{os.getpid()}"
    with pytest.raises(ProgramError, match=r"beyond\.bpf\.c cannot be loaded") as caught:
        program.load("beyond", place, Loading())
    assert "invalid access to map value" in caught.value.hint
    assert not list(place.parent.glob(f"{place.name}*"))


def test_a_number_that_is_not_given(sources: Path) -> None:
    """Nothing is loaded that would look at all file systems."""
    with pytest.raises(ValueError, match="touch: these numbers are given"):
        program.load("touch", bpffs.mount() / "active_restore_test_nothing", Loading(numbers={"LOADED_WATCHER": 1}))


def _load_block(name: str) -> None:
    with program.held("block", name, Loading()):
        pass


def test_second_start_needs_no_compiler(sources: Path, tmp_path: Path) -> None:
    _load_block("first")
    (kept,) = (tmp_path / "cache").glob("block-*.program")
    whole = kept.read_bytes()
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(sys, "executable", "/bin/false")
        _load_block("second")
        for damaged in (b"", whole[:-1], bytes(len(whole)), whole[:-1] + bytes([whole[-1] ^ 1])):
            kept.write_bytes(damaged)
            with pytest.raises(ProgramError, match="cannot be compiled"):
                _load_block("damaged")
    _load_block("mended")
    assert kept.read_bytes() == whole


def test_another_source_is_compiled(sources: Path, tmp_path: Path) -> None:
    _load_block("first")
    header = sources / "task.h"
    header.write_text(header.read_text() + "\n")
    _load_block("second")
    assert len(list((tmp_path / "cache").glob("block-*.program"))) == 2


@pytest.mark.parametrize("why", ["others may write", "a file in its place"])
def test_what_others_may_have_written_is_not_loaded(sources: Path, tmp_path: Path, why: str) -> None:
    cache = tmp_path / "cache"
    if why == "others may write":
        _load_block("first")
        cache.chmod(0o777)
    else:
        cache.touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(sys, "executable", "/bin/false")
        with pytest.raises(ProgramError, match="cannot be compiled"):
            _load_block("second")
    _load_block("third")
    assert sorted(tmp_path.rglob("*")) == before


def test_forgets_what_was_not_used_for_long(sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    (cache / "headers-old").mkdir()
    ages = {"gate-old.program": 91, "gate-recent.program": 89, "headers-old": 91, "of somebody else": 91}
    for name, days in ages.items():
        path = cache / name
        if not path.exists():
            path.touch()
        os.utime(path, (time.time() - days * 86400,) * 2)
    _load_block("first")
    assert {path.name for path in cache.iterdir()} & ages.keys() == {"gate-recent.program", "of somebody else"}
