"""The BPF file system, where pinned objects outlive the process that made them."""

from __future__ import annotations

import os
from pathlib import Path

from active_restore.linux.libc import check, libc

ROOT = Path("/sys/fs/bpf")
_FLAGS = 0x2 | 0x4 | 0x8  # nosuid, nodev, noexec


def pins(name: str) -> Path:
    """Where our pins of this name would lie, mounted or not."""
    return ROOT / "active_restore" / name


def windows(restore_id: str) -> Path:
    """Where those of the programs that watch mappings would lie."""
    return pins(f"windows_{restore_id}")


def mount() -> Path:
    """Mount it at its usual place unless it is there. Raises ``OSError``."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    if not any(line.split()[1:3] == [str(ROOT), "bpf"] for line in mounts):
        check(libc.mount(b"bpf", os.fsencode(ROOT), b"bpf", _FLAGS, b"mode=0700"), str(ROOT))
    return ROOT
