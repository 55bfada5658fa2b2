"""Can BPF LSM hold tasks here? Found out by trying, not by kernel versions; used by ``auto`` and by ``doctor``."""

from __future__ import annotations

import errno
import os
import platform
import struct
from typing import TYPE_CHECKING

from active_restore.ebpf import compiler, headers, maps
from active_restore.ebpf.btf import Btf, BtfError, read_kernel
from active_restore.errors import CapabilityMissing
from active_restore.linux.security import active_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PROG_TYPE_LSM, _ATTACH_LSM_MAC = 29, 27
_HOOK = "bpf_lsm_file_open"
# r0 = 0; exit
_RETURN_ZERO = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)


def require() -> None:
    """Raise the first ``CapabilityMissing`` of ``problems``."""
    for problem in problems():
        raise problem


def problems() -> Iterator[CapabilityMissing]:
    """Everything that keeps BPF LSM from working here, one line and one hint each; nothing where it works."""
    for check in (check_processor, check_lsm, check_permission, check_hooks, compiler.find_bcc):
        yield from _problem(check)


def _problem(check: Callable[[], None]) -> Iterator[CapabilityMissing]:
    try:
        check()
    except CapabilityMissing as problem:
        yield problem


def check_processor() -> None:
    """Whether its registers are known. Like each check here it raises ``CapabilityMissing``."""
    if platform.machine() not in headers.ARCHITECTURES:
        raise CapabilityMissing(f"There is no register layout for the processor {platform.machine()}.")


def check_lsm() -> None:
    """Whether ``bpf`` is among the active security modules."""
    try:
        modules = active_modules()
    except OSError as error:
        raise CapabilityMissing(
            f"The kernel does not say which security modules are active ({error.strerror}).", "Is CONFIG_SECURITY set?"
        ) from error
    if "bpf" not in modules:
        raise CapabilityMissing(
            f"The security module bpf is not active (lsm={','.join(modules)}).",
            f"Boot with lsm={','.join(name for name in modules if name != 'capability')},bpf (needs CONFIG_BPF_LSM).",
        )


def check_permission() -> None:
    """Who may not load a program is told so before the kernel looks at it: no need to read BTF for that."""
    try:
        _load(hook_id=0)
    except PermissionError as error:
        raise _explain(error) from error
    except OSError:
        return


def check_hooks() -> None:
    """Load a program that allows everything, and drop it again."""
    btf = Btf(read_kernel())
    for hook in (_HOOK, "bpf_lsm_path_truncate"):
        if not btf.has_function(hook):
            raise BtfError(f"The kernel has no hook {hook}.", "It needs CONFIG_BPF_LSM and CONFIG_SECURITY_PATH.")
    try:
        _load(btf.function_id(_HOOK))
    except PermissionError:
        return
    except OSError as error:
        raise _explain(error) from error


def _load(hook_id: int) -> None:
    os.close(maps.load_program(_PROG_TYPE_LSM, _RETURN_ZERO, "ar_probe", attach=(_ATTACH_LSM_MAC, hook_id)))


def _explain(error: OSError) -> CapabilityMissing:
    if error.errno == errno.EPERM:
        return CapabilityMissing(
            "Loading BPF LSM programs is refused (EPERM).",
            "It needs root (CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN); in a container or sandbox a policy may forbid it.",
        )
    return CapabilityMissing(
        f"The kernel does not take BPF LSM programs ({error.strerror}).", "It needs CONFIG_BPF_LSM and CONFIG_BPF_JIT."
    )
