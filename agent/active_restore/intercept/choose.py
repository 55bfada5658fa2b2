"""Which interceptor serves: BPF LSM where it loads, else fanotify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.errors import CapabilityMissing
from active_restore.intercept.fanotify import FanotifyInterceptor

if TYPE_CHECKING:
    from active_restore.config import InterceptorName
    from active_restore.intercept.base import Interceptor


def choose(name: InterceptorName) -> Interceptor:
    """A new interceptor. Raises ``CapabilityMissing`` where the wanted one cannot be had."""
    if name == "bpf":
        raise CapabilityMissing(
            "this version cannot hold tasks by BPF LSM", "use --interceptor fanotify; see: active-restore doctor"
        )
    return FanotifyInterceptor()
