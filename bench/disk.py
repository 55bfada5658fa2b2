"""Fresh ext4 file systems on loop devices, gone with all that is on them when the context ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UNMOUNT_SECONDS = 10.0


@contextlib.contextmanager
def fresh_disk(directory: Path, name: str, *, size_bytes: int, inodes: int) -> Iterator[Path]:
    """A new ext4 file system, mounted; ``directory`` is where its (sparse) image lies while it lives."""
    image, mountpoint = directory / f"{name}.ext4", directory / name
    mountpoint.mkdir()
    try:
        with image.open("wb") as file:
            file.truncate(size_bytes)
        # No table is left to be initialised by the kernel behind our back while we measure.
        options = "lazy_itable_init=0,lazy_journal_init=0"
        quiet("mkfs.ext4", "-q", "-F", "-E", options, "-N", str(inodes), str(image))
        # "-o loop" makes a loop device that goes with the mount.
        quiet("mount", "-o", "loop", str(image), str(mountpoint))
        try:
            (mountpoint / "lost+found").rmdir()
            yield mountpoint
        finally:
            _unmount(mountpoint)
    finally:
        image.unlink(missing_ok=True)
        mountpoint.rmdir()


def _unmount(mountpoint: Path) -> None:
    """A process that is just ending may hold it for a moment; at last it is detached, and goes when it is free."""
    deadline = time.monotonic() + _UNMOUNT_SECONDS
    while subprocess.run(["umount", str(mountpoint)], capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            quiet("umount", "--lazy", str(mountpoint))
            return
        time.sleep(0.1)


def quiet(*command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program; what it prints. Raises ``RuntimeError`` with what it said where it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=env, cwd=cwd)
    if ended.returncode:
        said = " ".join((ended.stderr or ended.stdout).split())[-400:]
        raise RuntimeError(f"{' '.join(command[:3])} ... ended with {ended.returncode}: {said}")
    return ended.stdout


def forget_page_cache() -> None:
    """As after a boot: what is read next comes from the disk."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3\n")


def filesystem_type(path: Path) -> str:
    """Name of the type of the file system that ``path`` lies on."""
    return quiet("stat", "--file-system", "--format=%T", str(path)).strip()


def free_bytes(path: Path) -> int:
    """Room that is left there."""
    return shutil.disk_usage(path).free
