"""What BPF LSM needs. Without it, fanotify holds tasks."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import platform
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.cli.checks.finding import Finding
from active_restore.linux.libc import check, libc

if TYPE_CHECKING:
    from collections.abc import Iterator

_LSM = Path("/sys/kernel/security/lsm")
_BTF = Path("/sys/kernel/btf/vmlinux")
_BPF_MAP_TYPE_ARRAY = 2
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_INTERCEPTOR = "active_restore.intercept.bpf_lsm"


def findings() -> Iterator[Finding]:
    """The interceptor, the kernel's configuration, type information, bcc."""
    yield Finding(
        "bpf interceptor",
        importlib.util.find_spec(_INTERCEPTOR) is not None,
        "bpf",
        "part of this version" if importlib.util.find_spec(_INTERCEPTOR) else "not part of this version",
        "it holds tasks by restarting their call, without any kernel lock held meanwhile",
        "use fanotify, which --interceptor auto takes",
    )
    yield _lsm()
    yield Finding(
        "kernel type information",
        os.access(_BTF, os.R_OK),
        "bpf",
        f"{_BTF} " + ("can be read" if os.access(_BTF, os.R_OK) else "is missing"),
        "programs are compiled against it, without kernel headers",
        "use a kernel with CONFIG_DEBUG_INFO_BTF=y",
    )
    yield _system_call()
    yield _bcc()


def _system_call() -> Finding:
    """Create a map of one entry, as everything that uses BPF does first (bpf(2), BPF_MAP_CREATE)."""
    attributes = struct.pack("=IIII", _BPF_MAP_TYPE_ARRAY, 4, 4, 1)
    problem = "unknown on this architecture"
    number = _SYS_BPF.get(platform.machine())
    if number is not None:
        try:
            os.close(check(libc.syscall(number, 0, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes))), "bpf"))
            problem = ""
        except OSError as error:
            problem = f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
    return Finding(
        "bpf(2)",
        not problem,
        "bpf",
        problem or "maps can be made",
        "programs and maps are loaded through it",
        "EPERM: run as root outside of containers, without a policy (seccomp, lockdown) that forbids it",
    )


def _lsm() -> Finding:
    try:
        active = _LSM.read_text().strip().split(",")
        detail = f"lsm={','.join(active)}"
        present = "bpf" in active
    except OSError as error:
        present = False
        detail = f"{_LSM} cannot be read: {error.strerror}"
    return Finding(
        "BPF LSM",
        present,
        "bpf",
        detail,
        "programs can only be attached to LSM hooks where bpf is among the active ones",
        "boot with lsm=...,bpf (keep what is there), and mount securityfs",
    )


def _bcc() -> Finding:
    spec = importlib.util.find_spec("bcc")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    right = any((place / "libbcc.py").exists() for place in places)
    other = "the module bcc is another project's" if spec else "there is no module bcc"
    return Finding(
        "bcc",
        right,
        "bpf",
        f"found in {places[0]}" if right else other,
        "it compiles and loads the programs",
        "install your distribution's package (python3-bpfcc, python3-bcc); the one called bcc on PyPI is unrelated",
    )
