"""What BPF LSM needs, by trying. Without it, fanotify holds tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.cli.checks.finding import Finding
from active_restore.cli.checks.target import existing
from active_restore.control.names import shown
from active_restore.ebpf import capability, compiler
from active_restore.errors import CapabilityMissing
from active_restore.linux.inode_numbers import InodeNumbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Name, check, what is said where it passes, why it matters.
_CHECKS: tuple[tuple[str, Callable[[], None], str, str], ...] = (
    ("processor", capability.check_processor, "its registers are known", "system calls are told apart by their registers"),
    (
        "BPF LSM",
        capability.check_lsm,
        "bpf is among the active security modules",
        "the kernel asks programs about each open",
    ),
    (
        "permission for BPF",
        capability.check_permission,
        "programs may be loaded",
        "a policy or a container may forbid it",
    ),
    (
        "hooks and type information",
        capability.check_hooks,
        "the kernel has the hooks and describes its types",
        "programs are compiled against the kernel's own types (BTF), without kernel headers",
    ),
    ("bcc", compiler.find_bcc, "the BPF Compiler Collection is there", "it compiles the programs"),
)
_ELSE = "nothing: --interceptor auto takes fanotify instead"


def findings(target: str) -> Iterator[Finding]:
    """One for each thing that is needed for a restore to where ``target`` is or would be made."""
    for name, check, detail, why in _CHECKS:
        try:
            check()
        except CapabilityMissing as problem:
            yield Finding(name, present=False, need="bpf", detail=str(problem), why=why, todo=problem.hint or _ELSE)
        else:
            yield Finding(name, present=True, need="bpf", detail=detail, why=why)
    yield _inode_numbers(existing(target))


def _inode_numbers(place: str) -> Finding:
    try:
        InodeNumbers(place).close()
        problem = ""
    except (LookupError, OSError) as error:
        problem = f"they cannot be found ({error})"
    return Finding(
        "inodes by number",
        not problem,
        "bpf",
        problem or f"those of {shown(place)} can be found",
        "programs know a placeholder by the number of its inode",
        "use ext4 or xfs, or let --interceptor auto take fanotify",
    )
