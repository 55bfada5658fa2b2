"""Processes of ours that guards of dead agents do not hold: those that read their own files in the state of a restore.

A file that was made since may have the number of a placeholder that was deleted. Whoever opens it is held until an agent looks,
and that would be the one that just begins. Not to be used by who reads files of users: a placeholder would look empty. So by
all guards only for as long as it takes to find out which one it is about.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING

from active_restore.ebpf.maps import Map
from active_restore.linux import bpffs
from active_restore.linux.pressure import start_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEY, _START = struct.Struct("=I"), struct.Struct("=Q")


@contextlib.contextmanager
def spared(restore_id: str = "*") -> Iterator[None]:
    """This process, until the block ends, by the guard of this restore (or by all) that is there when it begins."""
    with contextlib.ExitStack() as stack:
        key, start = _KEY.pack(os.getpid()), _START.pack(start_ticks(os.getpid()))
        for pin in bpffs.pins("").glob(f"{restore_id}/map_spared"):
            # It may have ended meanwhile, or not be ours to look at.
            with contextlib.suppress(OSError):
                found = stack.enter_context(contextlib.closing(Map.pinned(pin)))
                # Else by a block around this one.
                if found.get(key) != start:
                    found.put(key, start)
                    stack.callback(found.remove, key)
        yield
