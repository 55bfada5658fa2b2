"""The programs compile for kernels that this machine does not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf.compiler import compile_program
from active_restore.ebpf.headers import write_headers
from active_restore.ebpf.image import read_btf
from tests.vm.kernels import kernels

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("release", ["6.1", "6.12", "6.1-arm64"])
@pytest.mark.parametrize("name", ["gate", "block"])
def test_compiles_for_other_kernels(tmp_path: Path, release: str, name: str) -> None:
    machine = "aarch64" if release.endswith("arm64") else "x86_64"
    tree = write_headers(read_btf(kernels()[release].image), machine, tmp_path)
    compile_program(name, tree, machine, {"RANGES": 1})
