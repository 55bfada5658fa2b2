"""Tasks that cannot be held by restarting their call (design, section 9): io_uring, programs of the kernel, its NFS server."""

from __future__ import annotations

import contextlib
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.inside.territory import Child, load_modules

if TYPE_CHECKING:
    from collections.abc import Iterator

# One openat by io_uring: arguments are the file, the flags of io_uring_setup and the flags of the entry.
OPEN_BY_IO_URING = """
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
RINGS = {"inline": ("0", "0"), "worker": ("0", "16"), "kernel thread": ("2", "0")}

CORE_WAS_TAKEN = Path("/run/core-was-taken")
TAKES_CORES = f"#!/bin/sh\ncat > /dev/null\ntouch {CORE_WAS_TAKEN}\n".encode()
_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
_NFSD = Path("/proc/fs/nfsd")


@contextmanager
def core_pattern(program: Path) -> Iterator[None]:
    """The kernel itself starts this one, which holds ``TAKES_CORES``, for whoever crashes."""
    before = _CORE_PATTERN.read_text()
    _CORE_PATTERN.write_text(f"|{program}")
    try:
        yield
    finally:
        _CORE_PATTERN.write_text(before)
        CORE_WAS_TAKEN.unlink(missing_ok=True)


def crash() -> None:
    """Return when a task has dumped its core, or would have: whoever takes it was started by then, or could not be."""
    Child("sh", "-c", "ulimit -c unlimited; kill -SEGV $$").finish()


def _tell(cache: str, line: str) -> None:
    """What the kernel asks mountd for: a line for one of the caches of its NFS server (net/sunrpc/cache.c)."""
    Path(f"/proc/net/rpc/{cache}/channel").write_text(f"{line}\n")


@contextmanager
def exported(root: Path, seen: Path) -> Iterator[Path]:
    """The directory ``root`` by NFS from this very machine in ``seen``, without the programs of an NFS server."""
    load_modules("nfsd", "nfsv4")
    if not os.path.ismount(_NFSD):
        subprocess.run(["mount", "-t", "nfsd", "nfsd", _NFSD], check=True)
    for name, text in {"nfsv4gracetime": "10", "versions": "-3 +4", "portlist": "tcp 2049"}.items():
        (_NFSD / name).write_text(f"{text}\n")
    never = (1 << 31) - 1
    _tell("auth.unix.ip", f"nfsd 127.0.0.1 {never} *")
    # Not secure, no squashing, known by the number 0, no check of subtrees.
    _tell("nfsd.export", f"* {root} {never} {0x2402} 65534 65534 0")
    _tell("nfsd.fh", f"* 1 \\x00000000 {never} {root}")
    (_NFSD / "threads").write_text("2\n")
    with contextlib.ExitStack() as stack:
        stack.callback((_NFSD / "threads").write_text, "0\n")
        options = "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,sec=sys,soft,timeo=600"
        subprocess.run(["mount", "-i", "-t", "nfs4", "-o", options, "127.0.0.1:/", str(seen)], check=True)
        stack.callback(subprocess.run, ["umount", "-l", str(seen)], check=True)
        yield seen
