"""With a fanotify guard beside BPF, the tasks that cannot be restarted are held, too (design, section 9)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from active_restore.errors import TargetError
from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor
from active_restore.intercept.pins import directory
from tests.kernel.disks import mounted
from tests.vm.inside.territory import Child, Guarded, load_modules, python, until

CONTENT = b"what the backup holds\n" * 1000

# One openat by io_uring: arguments are the file, the flags of io_uring_setup and the flags of the entry.
_IO_URING = """
    import ctypes, mmap, os, struct, sys
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(120)
    struct.pack_into("=I", params, 8, int(sys.argv[2]))
    ring = libc.syscall(425, 2, params)
    assert ring >= 0, os.strerror(ctypes.get_errno())
    sq, cq = struct.unpack_from("=9I", params, 40), struct.unpack_from("=9I", params, 80)
    queue = mmap.mmap(ring, sq[6] + 64, offset=0)
    results = mmap.mmap(ring, cq[5] + 256, offset=0x8000000)
    entries = mmap.mmap(ring, 128, offset=0x10000000)
    path = ctypes.create_string_buffer(sys.argv[1].encode())
    struct.pack_into("=BBHiQQIIQ", entries, 0, 18, int(sys.argv[3]), 0, -100, 0, ctypes.addressof(path), 0, os.O_RDONLY, 7)
    struct.pack_into("=I", queue, sq[6], 0)
    struct.pack_into("=I", queue, sq[1], 1)
    while struct.unpack_from("=I", results, cq[1])[0] == 0:
        libc.syscall(426, ring, 0 if int(sys.argv[2]) else 1, 1, 3, None, 0)
    result = struct.unpack_from("=Qi", results, cq[5])[1]
    print(len(os.read(result, 1 << 20)) if result >= 0 else result)
"""


def test_ordinary_task_is_held_by_bpf(paired: Guarded) -> None:
    path = paired.lay_now("plain", CONTENT)
    assert Child("cat", path).finish() == CONTENT.decode()
    assert paired.by_guard() == {False}


@pytest.mark.ci
def test_traced_task(paired: Guarded) -> None:
    path = paired.lay_now("traced", CONTENT)
    assert Child("strace", "-o", "/dev/null", "cat", path).finish() == CONTENT.decode()
    assert paired.by_guard() == {True}


def test_task_with_a_handler_for_sigcont(paired: Guarded) -> None:
    path = paired.lay_now("handler", CONTENT)
    code = "import signal, sys; signal.signal(signal.SIGCONT, print); print(len(open(sys.argv[1]).read()))"
    assert python(code, path).finish() == f"{len(CONTENT)}\n"
    assert paired.by_guard() == {True}


@pytest.mark.ci
@pytest.mark.parametrize(
    ("setup_flags", "entry_flags"), [("0", "0"), ("0", "16"), ("2", "0")], ids=["inline", "worker", "kernel thread"]
)
def test_io_uring(paired: Guarded, setup_flags: str, entry_flags: str) -> None:
    path = paired.lay_now(f"uring{setup_flags}-{entry_flags}", CONTENT)
    assert python(_IO_URING, path, setup_flags, entry_flags).finish() == f"{len(CONTENT)}\n"
    assert paired.by_guard() == {True}


@pytest.mark.ci
def test_usermode_helper(paired: Guarded) -> None:
    """The kernel itself starts the program that takes core dumps."""
    path = paired.lay_now("core", b"#!/bin/sh\ncat > /dev/null\ntouch /run/core-was-taken\n", 0o755)
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    try:
        pattern.write_text(f"|{path}")
        Child("sh", "-c", "ulimit -c unlimited; kill -SEGV $$").finish()
        until(Path("/run/core-was-taken").exists, "the helper's work")
    finally:
        pattern.write_text(before)
        with contextlib.suppress(FileNotFoundError):
            os.unlink("/run/core-was-taken")
    assert paired.by_guard() == {True}


def test_where_inodes_have_no_numbers(tmp_path: Path) -> None:
    """BPF refuses and leaves nothing; where nobody insists on it, fanotify holds everybody."""
    load_modules("btrfs")
    with mounted("btrfs", tmp_path / "disk") as disk:
        root = disk.mount / "root"
        refused = Guarded(root, tmp_path)
        root.mkdir()
        with pytest.raises(TargetError, match="by number"):
            refused.interceptor.arm(refused.territory)
        assert not directory(refused.territory.restore_id).exists()
        with Guarded(root, tmp_path, GuardedBpfInterceptor(required=False)) as alone:
            path = alone.lay_now("plain", CONTENT)
            assert Child("cat", path).finish() == CONTENT.decode()
            assert alone.interceptor.name == "fanotify"
        assert not directory(refused.territory.restore_id).exists()
