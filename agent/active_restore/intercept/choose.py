"""Which interceptor serves: BPF LSM where it loads, else fanotify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.ebpf import capability
from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor
from active_restore.intercept.fanotify import FanotifyInterceptor

if TYPE_CHECKING:
    from active_restore.config import InterceptorName
    from active_restore.intercept.base import Interceptor


def choose(name: InterceptorName) -> Interceptor:
    """A new interceptor. Raises ``CapabilityMissing`` where the wanted one cannot be had."""
    if name == "fanotify":
        return FanotifyInterceptor()
    problem = next(capability.problems(), None)
    if problem is None:
        return GuardedBpfInterceptor()
    if name == "bpf":
        raise problem
    return FanotifyInterceptor()
