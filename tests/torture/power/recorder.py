"""Disks that note what is written: images behind ``server``, which ends when they are unmounted."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from active_restore.linux.libc import check, libc
from tests.cli.machine import ROOT
from tests.kernel.waiting import DEADLINE_S, wait_until
from tests.torture.power.server import FAILING, POSITION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Recorder:
    """Serves ``images`` as ``disk(0)``, ``disk(1)``...; ``with`` ends it. What they are mounted by must be gone before."""

    def __init__(self, place: Path, images: Sequence[Path]) -> None:
        self._mount = place / "disks"
        self._mount.mkdir()
        self.log = place / "log"
        self.page = place / "page"
        self.page.write_bytes(bytes(mmap.PAGESIZE))
        self._images = images

    def __enter__(self) -> Recorder:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        shared = os.open(self.page, os.O_RDWR | os.O_CLOEXEC)
        self._shared = mmap.mmap(shared, mmap.PAGESIZE)
        words = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,max_read={1 << 20}".encode()
        check(libc.mount(b"recorder", os.fsencode(self._mount), b"fuse", 0, ctypes.c_char_p(words)), "mount")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.power.server", *map(str, (fuse, log, shared)), *map(str, self._images)],
            pass_fds=(fuse, log, shared),
            cwd=ROOT,
        )
        for fd in (fuse, log, shared):
            os.close(fd)
        return self

    def disk(self, number: int) -> Path:
        """What a loop device takes."""
        return self._mount / f"disk{number}"

    def position(self) -> int:
        """How many records there are now."""
        return int(POSITION.unpack_from(self._shared)[0])

    def fail(self, kinds: int) -> None:
        """From now on requests of these kinds (``server.FAIL_*``) meet EIO."""
        FAILING.pack_into(self._shared, 0, kinds)

    def __exit__(self, *_: object) -> None:
        wait_until(lambda: not libc.umount2(os.fsencode(self._mount), 0), f"{self._mount} can be unmounted")
        assert self._server.wait(DEADLINE_S) == 0
        self._shared.close()
