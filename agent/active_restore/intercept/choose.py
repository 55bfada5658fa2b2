"""Which interceptor serves: BPF LSM with a fanotify guard beside it where it can be had, or fanotify alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.ebpf import capability
from active_restore.errors import NotRunning
from active_restore.intercept import keepers, pins
from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor
from active_restore.intercept.fanotify import FanotifyInterceptor

if TYPE_CHECKING:
    from active_restore.config import InterceptorName
    from active_restore.intercept.base import Interceptor


def choose(name: InterceptorName, restore_id: str) -> Interceptor:
    """A new interceptor. Raises ``CapabilityMissing`` where the wanted one cannot be had.

    What a dead agent of this restore left decides before anything else: who is held by BPF can only be let go by BPF.
    """
    if pins.are_left(restore_id):
        return GuardedBpfInterceptor(required=name == "bpf")
    if name != "bpf":
        # auto, too, until whole restores have been held by BPF as long and as often as by fanotify.
        return FanotifyInterceptor()
    capability.require()
    return GuardedBpfInterceptor(required=True)


def abandon(run_dir: str, restore_id: str, errno: int) -> None:
    """Without an agent: refuse all who wait and will come, with ``errno``. Raises ``NotRunning`` where nobody is guarded."""
    found = pins.abandon(restore_id, errno)
    try:
        keepers.abandon(run_dir, errno)
    except NotRunning:
        if not found:
            raise
