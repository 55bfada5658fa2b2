"""What tests of dying agents have in common: files to lose, and how an agent is killed."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tests.kernel.rig import MIB, marked

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.machine import Command

OLD_NS = 1_500_000_000_123_456_789


def kill(command: Command) -> None:
    command.signal(signal.SIGKILL)
    assert command.end()[0] == -signal.SIGKILL


def make(tree: Path, count: int = 20, size: int = 20_000) -> list[str]:
    names = [f"f{number:04}" for number in range(count)]
    for name in names:
        (tree / name).write_bytes(os.urandom(size))
        os.utime(tree / name, ns=(OLD_NS, OLD_NS))
    return names


def begun(target: Path) -> bool:
    """Whether some placeholder has a part of its content."""
    return any(marked(path) and 100 < path.stat().st_blocks < 12 * MIB // 512 for path in target.glob("f*"))
