"""Whether BPF LSM can be had is found out by trying, and everything that is in the way is named."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import capability, headers
from active_restore.ebpf.btf import read_kernel
from active_restore.errors import CapabilityMissing
from active_restore.linux import new_mount
from active_restore.linux.security import active_modules

if TYPE_CHECKING:
    from pathlib import Path


def test_modules_without_a_mounted_securityfs() -> None:
    root = new_mount.detached("securityfs")
    try:
        assert os.stat("lsm", dir_fd=root).st_mode
    finally:
        os.close(root)
    assert "capability" in active_modules()


def test_bpf_not_in_lsm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "active_modules", lambda: ["capability", "yama"])
    problem = next(problem for problem in capability.problems() if "lsm=" in str(problem))
    assert str(problem) == "The security module bpf is not active (lsm=capability,yama)."
    assert "lsm=yama,bpf" in problem.hint


def test_processor_without_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "ARCHITECTURES", {})
    with pytest.raises(CapabilityMissing, match="register layout"):
        capability.require()


def test_unprivileged() -> None:
    """A child without privileges is refused by the kernel itself."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.setuid(65534)
        words = " ".join(f"{problem} {problem.hint}" for problem in capability.problems())
        os.write(write, words.encode())
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        assert "is refused (EPERM)" in answer.read()
    assert os.waitpid(child, 0)[1] == 0


def test_old_kernel_is_told_apart_from_a_policy() -> None:
    explained = capability._explain(OSError(errno.EINVAL, os.strerror(errno.EINVAL)))
    assert "does not take BPF LSM programs (Invalid argument)" in str(explained)
    assert "CONFIG_BPF_LSM" in explained.hint


def test_kernel_without_type_information(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(capability, "read_kernel", lambda: read_kernel(tmp_path / "vmlinux"))
    problem = next(problem for problem in capability.problems() if "BTF" in str(problem))
    assert "The kernel has no BTF" in str(problem)
    assert "CONFIG_DEBUG_INFO_BTF" in problem.hint


def test_the_probe_is_two_instructions() -> None:
    """mov64 r0, 0; exit (Linux Documentation/bpf/standardization/instruction-set.rst)."""
    assert [struct.unpack_from("=B", capability._RETURN_ZERO, at)[0] for at in (0, 8)] == [0xB7, 0x95]
