"""The kernels that the tests know: fetched and unpacked by ``setup``, never installed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
BUILD = _HERE.parents[1] / "build" / "vm"
# Compiled for, but not booted here.
FOREIGN = "6.1-arm64"


@dataclass(frozen=True)
class Kernel:
    """A kernel as ``setup`` unpacks it: ``directory/boot/vmlinuz-*`` with its modules in ``directory/lib``."""

    name: str
    directory: Path

    @property
    def image(self) -> Path:
        """The file to boot."""
        return next((self.directory / "boot").glob("vmlinuz-*"))


@cache
def kernels() -> dict[str, Kernel]:
    """All of them by name, in ``build/vm/kernels`` or where ACTIVE_RESTORE_KERNELS says."""
    directory = Path(os.environ.get("ACTIVE_RESTORE_KERNELS", BUILD / "kernels"))
    subprocess.run([_HERE / "setup", directory, sys.executable], check=True, stdout=sys.stderr)
    found = sorted(image.parents[1] for image in directory.glob("*/boot/vmlinuz-*"))
    return {path.name: Kernel(path.name, path) for path in found}
