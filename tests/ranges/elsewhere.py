"""The background must be elsewhere: its first step is free whatever the limit, and fills a small file by range as a whole."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from active_restore.predict.order import FILE_NAME, Order, Touch, encode
from tests.kernel.rig import MIB

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "elsewhere"


def begin_elsewhere(tree: Path) -> None:
    """A large file that nobody wants, and an order that begins with it: a limit of 1 byte a second is exhausted by that."""
    with open(tree / _NAME, "wb") as file:
        file.write(b"e" * 65536)
        file.truncate(16 * MIB)
    touches = (Touch(_NAME.encode(), "", 0, ((0, 16 * MIB),)),)
    (tree / os.fsdecode(FILE_NAME)).write_bytes(encode(Order(0, touches)))
