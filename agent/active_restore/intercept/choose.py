"""Which interceptor serves: fanotify, or BPF LSM where it is asked for and loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.intercept.fanotify import FanotifyInterceptor

if TYPE_CHECKING:
    from active_restore.config import InterceptorName
    from active_restore.intercept.base import Interceptor


def choose(name: InterceptorName) -> Interceptor:
    """A new interceptor. Raises ``CapabilityMissing`` where the wanted one cannot be had.

    ``auto`` is fanotify until whole restores have been held by BPF as long and as often as by fanotify.
    """
    if name != "bpf":
        return FanotifyInterceptor()
    # Imported where it is wanted: it takes as long as a tenth of a whole start.
    from active_restore.ebpf import capability
    from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor

    for problem in capability.problems():
        raise problem
    return GuardedBpfInterceptor()
