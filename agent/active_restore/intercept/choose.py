"""Which interceptor serves: BPF LSM where it loads, else fanotify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.errors import CapabilityMissing, NotRunning
from active_restore.intercept import group, keepers, windows
from active_restore.intercept.fanotify import FanotifyInterceptor
from active_restore.linux import bpffs
from active_restore.linux.inode_numbers import InodeNumbers
from active_restore.linux.security import active_modules

if TYPE_CHECKING:
    from active_restore.config import RestoreOptions
    from active_restore.intercept.base import Interceptor


def choose(options: RestoreOptions, restore_id: str) -> Interceptor:
    """A new interceptor, as ``options.interceptor`` says. Raises ``CapabilityMissing`` where the wanted one cannot be had.

    What a dead agent of this restore left decides before anything else: who is held by BPF can only be let go by BPF.
    With ``auto``, programs that do not load after all are told of, and fanotify holds everybody.
    """
    is_left = bpffs.pins(restore_id).is_dir()
    asked = options.interceptor
    against = "" if is_left or asked == "bpf" else "asked for" if asked == "fanotify" else _against_bpf(options)
    if against:
        alone = FanotifyInterceptor()
        alone.reason = against
        return alone
    # Imported where it is wanted: it takes as long as a tenth of a whole start.
    from active_restore.ebpf import capability
    from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor

    if not is_left and asked == "bpf":
        capability.require()
    return GuardedBpfInterceptor(options.hold, required=asked == "bpf", by_range=bool(options.ranges))


def _against_bpf(options: RestoreOptions) -> str:
    """Why ``auto`` does not try it; empty where it is worth trying. Most kernels are not booted with ``bpf`` in ``lsm=``."""
    try:
        if "bpf" not in active_modules():
            return "bpf is not in lsm="
    except OSError as error:
        return f"the kernel does not tell its security modules: {error.strerror}"
    if options.ranges and group.has_ranges(options.target):
        # They see more of io_uring, of traced tasks and of threads of the kernel than programs do.
        return "files by range wait by pre-content events"
    from active_restore.ebpf import capability

    try:
        InodeNumbers(options.target).close()
        capability.check_permission()
    except (CapabilityMissing, LookupError) as problem:
        return str(problem).rstrip(".")
    return ""


def abandon(run_dir: str, restore_id: str, errno: int) -> None:
    """Without an agent: refuse all who wait and will come, with ``errno``. Raises ``NotRunning`` where nobody is guarded."""
    windows.abandon(restore_id)
    is_left = bpffs.pins(restore_id).is_dir()
    if is_left:
        from active_restore.intercept import pins

        pins.abandon(restore_id, errno)
    try:
        keepers.abandon(run_dir, errno)
    except NotRunning:
        if not is_left:
            raise
