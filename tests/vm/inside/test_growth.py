"""Where the kernel takes tracing programs, those that stop whose mapping grows are on the system calls of that alone."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import growth
from active_restore.ebpf.growth import Growth
from active_restore.intercept.tracer import is_same
from active_restore.linux import bpffs
from active_restore.linux.files import generation_of
from active_restore.linux.mounts import superblock
from tests.cli.machine import ROOT
from tests.vm.inside.territory import Child, state_of, until

if TYPE_CHECKING:
    from pathlib import Path

_MAPS = ROOT / "tests" / "ranges" / "maps.py"


@pytest.mark.ci("6.12")
def test_on_their_calls_alone(disk: Path) -> None:
    path = disk / "grows"
    path.write_bytes(os.urandom(2 << 20))
    bpffs.mount()
    pins = bpffs.windows(f"test{os.getpid()}")
    found = Growth.loaded(pins)
    try:
        links = {link.name for link in pins.glob("link_*")}
        assert {"link_mmap", "link_x64_sys_mremap", "link_x64_sys_remap_file_pages", "link_ia32_sys_mremap"} <= links
        fd = os.open(path, os.O_RDONLY)
        inode, where = os.fstat(fd).st_ino, growth.which(superblock(str(disk)), generation_of(fd))
        os.close(fd)
        found.guard(inode, where)
        for how in ("private", "in place", "inherited", "elsewhere"):
            child = Child(sys.executable, "-I", _MAPS, how, path)
            until(lambda: list(found.grown()), f"{how}: it is stopped")
            (grown,) = found.grown()
            assert (grown.inode, grown.where) == (inode, where)
            assert is_same(grown)
            until(lambda pid=grown.tgid: state_of(pid) == "T", f"{how}: it stands still")  # type: ignore[misc]
            while child.is_running():
                for one in list(found.grown()):
                    found.conclude(one)
                    os.kill(one.tgid, signal.SIGCONT)
            assert child.finish()
        found.forget(inode, where)
        assert Child(sys.executable, "-I", _MAPS, "private", path).finish()
        assert not list(found.grown())
    finally:
        found.close()
        growth.unpin(pins)
        path.unlink()
