"""File systems of their own in loop-mounted images: nothing here ever guards the machine's own file systems."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
KINDS = tuple(os.environ.get("ACTIVE_RESTORE_TEST_DISKS", "ext4,xfs,btrfs").split(","))
_MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


class Disk(NamedTuple):
    """A mounted file system."""

    kind: str
    mount: Path


def restore_id_of(root: Path) -> str:
    """The restore of a directory, so that no two tests have the same one, also where they run at the same time."""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:16]


@contextlib.contextmanager
def mounted(kind: str, place: Path, size_bytes: int = 4096 * MIB) -> Iterator[Disk]:
    """Make a file system in the directory ``place`` and mount it there; unmounted at the end, whatever happened.

    The size is that of a sparse file, and has room for what all tests of a session leave.
    """
    place.mkdir(parents=True, exist_ok=True)
    image, mount = place / f"{kind}.img", place / kind
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    subprocess.run([*_MKFS[kind], image], check=True, stdout=subprocess.DEVNULL)
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield Disk(kind, mount)
    finally:
        try:
            wait_until(lambda: _unmount(mount), f"{mount} can be unmounted")
        except AssertionError as error:
            error.add_note(f"this process holds {_held(mount)}")
            subprocess.run(["umount", "--lazy", mount], check=False)
            raise
        image.unlink()


def unmount_for_good(mount: Path) -> None:
    """Return when its file system has left the memory, too: a mount namespace of somebody else's may have it for a moment."""
    device = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1] == str(mount))
    backing = Path("/sys/block", Path(device).name, "loop/backing_file")
    file = backing.read_text()
    wait_until(lambda: _unmount(mount), f"{mount} can be unmounted")
    wait_until(lambda: not (backing.exists() and backing.read_text() == file), f"{device} is free")


def _held(mount: Path) -> list[str]:
    """What of a file system this very process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(f"{number}: {os.readlink(f'/proc/self/fd/{number}')}")
    return [text for text in found if str(mount) in text]


def _unmount(mount: Path) -> bool:
    # What a test has dropped may be held by a cycle.
    gc.collect()
    return subprocess.run(["umount", mount], capture_output=True, check=False).returncode == 0
