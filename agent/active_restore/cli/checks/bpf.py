"""What BPF LSM needs. Without it, fanotify holds tasks."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.cli.checks.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

_LSM = Path("/sys/kernel/security/lsm")
_BTF = Path("/sys/kernel/btf/vmlinux")
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
    yield _bcc()


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
