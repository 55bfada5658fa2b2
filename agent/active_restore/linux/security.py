"""The security modules of this kernel."""

from __future__ import annotations

import os
from pathlib import Path

from active_restore.linux import new_mount

_LSM_FILE = Path("/sys/kernel/security/lsm")


def active_modules() -> list[str]:
    """Their names, in order. Raises ``OSError`` where the kernel does not say (no securityfs)."""
    try:
        return _LSM_FILE.read_text().strip().split(",")
    except FileNotFoundError:
        root = new_mount.detached("securityfs")
        try:
            fd = os.open("lsm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
            with os.fdopen(fd) as file:
                return file.read().strip().split(",")
        finally:
            os.close(root)
