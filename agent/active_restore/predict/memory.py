"""What a recorder that goes on after its own restart must know: when this boot's recording began, and how far it was.

The file lies in the run directory, which a reboot empties: where it is, the order in the tree is of this boot.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from pathlib import Path


class Beginning(NamedTuple):
    """By both clocks, in seconds: the one of the wall may be set meanwhile. ``own`` touches of the order are of this boot."""

    wall_s: float
    monotonic_s: float
    own: int = 0


def now() -> Beginning:
    """A recording that begins."""
    return Beginning(time.time(), time.monotonic())


def load(path: Path) -> Beginning | None:
    """What an earlier recorder of this boot left; ``None`` where there was none."""
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Beginning)
    except (OSError, msgspec.MsgspecError):
        return None


def save(path: Path, beginning: Beginning) -> None:
    """Replaced as a whole; not durable, as it is worth nothing after a reboot. Raises ``OSError``."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(msgspec.msgpack.encode(beginning))
    fresh.rename(path)
