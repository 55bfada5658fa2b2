"""Which interceptor serves: fanotify, or BPF LSM where it is asked for and loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.errors import NotRunning
from active_restore.intercept import keepers
from active_restore.intercept.fanotify import FanotifyInterceptor
from active_restore.linux import bpffs

if TYPE_CHECKING:
    from active_restore.config import RestoreOptions
    from active_restore.intercept.base import Interceptor


def choose(options: RestoreOptions, restore_id: str) -> Interceptor:
    """A new interceptor. Raises ``CapabilityMissing`` where the wanted one cannot be had.

    What a dead agent of this restore left decides before anything else: who is held by BPF can only be let go by BPF.
    ``auto`` is fanotify until whole restores have been held by BPF as long and as often as by fanotify.
    """
    is_left = bpffs.pins(restore_id).is_dir()
    if options.interceptor != "bpf" and not is_left:
        return FanotifyInterceptor()
    # Imported where it is wanted: it takes as long as a tenth of a whole start.
    from active_restore.ebpf import capability
    from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor

    if not is_left:
        capability.require()
    return GuardedBpfInterceptor(options.hold, required=options.interceptor == "bpf", by_range=bool(options.ranges))


def abandon(run_dir: str, restore_id: str, errno: int) -> None:
    """Without an agent: refuse all who wait and will come, with ``errno``. Raises ``NotRunning`` where nobody is guarded."""
    is_left = bpffs.pins(restore_id).is_dir()
    if is_left:
        from active_restore.intercept import pins

        pins.abandon(restore_id, errno)
    try:
        keepers.abandon(run_dir, errno)
    except NotRunning:
        if not is_left:
            raise
