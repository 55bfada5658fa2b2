"""Which interceptor serves: BPF LSM where it loads (or is insisted on), else fanotify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.errors import NotRunning
from active_restore.intercept import keepers
from active_restore.intercept.fanotify import FanotifyInterceptor
from active_restore.linux import bpffs
from active_restore.linux.security import active_modules

if TYPE_CHECKING:
    from active_restore.config import Hold, InterceptorName
    from active_restore.intercept.base import Interceptor


def choose(name: InterceptorName, restore_id: str, hold: Hold = "ptrace") -> Interceptor:
    """A new interceptor. Raises ``CapabilityMissing`` where the wanted one cannot be had.

    What a dead agent of this restore left decides before anything else: who is held by BPF can only be let go by BPF.
    With ``auto``, programs that do not load after all are told of and fanotify holds everybody.
    """
    is_left = bpffs.pins(restore_id).is_dir()
    if not is_left and (name == "fanotify" or (name == "auto" and not _is_worth_trying())):
        return FanotifyInterceptor()
    # Imported where it is wanted: it takes as long as a tenth of a whole start.
    from active_restore.ebpf import capability
    from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor

    if not is_left and name == "bpf":
        capability.require()
    return GuardedBpfInterceptor(hold, required=name == "bpf")


def _is_worth_trying() -> bool:
    """Most kernels are not booted with ``bpf`` among their security modules, and say so at once."""
    try:
        return "bpf" in active_modules()
    except OSError:
        return False


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
