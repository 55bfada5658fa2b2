"""What was done to half-restored files is there after agent and keepers have died at once, and after a power cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from active_restore.linux import fiemap
from tests.kernel.disks import mounted
from tests.kernel.rig import MIB, marked, traces
from tests.kernel.tasks import python
from tests.ranges.elsewhere import begin_elsewhere
from tests.ranges.test_fsx import OPTIONS, from_restic
from tests.ranges.test_mappings import by_windows
from tests.restore.actions import outcome

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

OLD_NS = 1_400_000_000_987_654_321
SIZE = 5 * MIB + 777
# Each on a file of its own, whose pages are missing. All but the last six leave it half restored.
ACTIONS = {
    "read": "os.pread(os.open(p, os.O_RDONLY), 10, 2_000_000)",
    "write": "os.pwrite(os.open(p, os.O_WRONLY), b'new', 3_000_001)",
    "append": "os.write(os.open(p, os.O_WRONLY | os.O_APPEND), b'new')",
    "extend": "os.pwrite(os.open(p, os.O_WRONLY), b'new', 5_900_000)",
    # Pages around it are in the page cache, in large folios, and hold zeros.
    "mapped store": "fd = os.open(p, os.O_RDWR)\nos.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)\nimport mmap\n"
    + "m = mmap.mmap(fd, 4096, offset=3 << 20)\nm[5:8] = b'new'\nm.flush()",
    "synced": "fd = os.open(p, os.O_RDWR)\nos.pwrite(fd, b'new', 10_001)\nos.fsync(fd)",
    "direct": "import mmap\nm = mmap.mmap(-1, 4096)\nm[:] = b'n' * 4096\nfd = os.open(p, os.O_WRONLY | os.O_DIRECT)\n"
    + "os.pwritev(fd, [m], 8192)",
    "utime": "os.utime(p, ns=(5, 7))\nos.pread(os.open(p, os.O_RDONLY), 10, 2_000_000)",
    "punch": "import ctypes\nfd = os.open(p, os.O_RDWR)\nos.pread(fd, 10, 100_000)\n"
    + "assert ctypes.CDLL(None).fallocate(fd, 3, ctypes.c_long(90_000), ctypes.c_long(80_000)) == 0",
    "truncate": "os.truncate(p, 50_000)\nos.truncate(p, 5_000_000)",
    "open for nothing": "os.close(os.open(p, os.O_WRONLY | os.O_TRUNC))",
    "allocate": "os.posix_fallocate(os.open(p, os.O_RDWR), 100_000, 500_000)",
    "hole in a mapping": "import mmap\nm = mmap.mmap(os.open(p, os.O_RDWR), 8192, offset=1 << 20)\n"
    + "m.madvise(mmap.MADV_REMOVE, 0, 4096)",
    "copy in": "fd = os.open(p, os.O_RDWR)\nos.copy_file_range(fd, fd, 100_000, 0, 1_000_000)",
}
HALF = list(ACTIONS)[:-6]


def act(folder: Path) -> None:
    for name, code in ACTIONS.items():
        python(f"p = sys.argv[1]\n{code}", folder / name)


def fill(tree: Path) -> None:
    begin_elsewhere(tree)
    for name in ACTIONS:
        (tree / name).write_bytes(os.urandom(SIZE))
        os.utime(tree / name, ns=(OLD_NS, OLD_NS))


def compare(model: Path, target: Path, *, times: bool) -> None:
    for name in ACTIONS:
        ours, theirs = outcome(target / name, OLD_NS + 1), outcome(model / name, OLD_NS + 1)
        assert ours is not None
        assert theirs is not None
        if not times:
            ours["mtime"] = theirs["mtime"]
        assert ours.pop("content") == theirs.pop("content"), name
        assert ours == theirs, name


def prepare(rig: Rig, kind: str) -> Path:
    fill(rig.tree)
    model = rig.place / "model"
    shutil.copytree(rig.tree, model)
    act(model)
    if kind != "xfs":
        from_restic(rig)
    return model


def test_everything_dies(rig: Rig, target: Path) -> None:
    model = prepare(rig, target.parent.name)
    command = rig.restore(target, *OPTIONS, "--limit", "1")
    with rig.control(target) as client:
        client.pause()
    act(target)
    assert [name for name in ACTIONS if marked(target / name)] == HALF
    command.kill()
    for name in ("ar-standby", "ar-keeper"):
        rig.kill(name)
    command = rig.resume(target)
    rig.finish(command, target)
    compare(model, target, times=True)
    rig.assert_clean(target)


# Read up to the edge of what is there, so that the kernel reads ahead beyond it, in large folios; then store before the edge.
_STORE_AT_EDGE = """
import mmap
p, edge = sys.argv[1], int(sys.argv[2])
fd = os.open(p, os.O_RDWR)
os.fdatasync(fd)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
for at in range(edge - 100 * 4096, edge, 4096):
    os.pread(fd, 4096, at)
m = mmap.mmap(fd, 4096, offset=edge - 4096)
m[7:10] = b'new'
m.flush()
os.fsync(fd)
"""


# Those with large folios.
@pytest.mark.parametrize("disk", ["ext4", "xfs"], indirect=True)
def test_store_beside_missing_pages(rig: Rig, target: Path) -> None:
    """A store dirties its folio as a whole, with the zeros of pages in it that are missing: those must not pass for content."""
    content = bytearray(os.urandom(24 * MIB))
    (rig.tree / "file").write_bytes(content)
    begin_elsewhere(rig.tree)
    from_restic(rig)
    # Else the store would wait for the whole file.
    command = by_windows(rig, target, "--ranges", "*")
    edges = []
    for start in range(MIB, 23 * MIB, 3 * MIB):
        python("fd = os.open(sys.argv[1], 0)\nos.pread(fd, 1, int(sys.argv[2]))\nos.fsync(fd)", target / "file", str(start))
        with (target / "file").open("rb") as file:
            edge = start
            for begin, end in fiemap.written(file.fileno()):
                edge = end if begin <= edge < end else edge
        # A blob has at least 512 KiB, so 100 pages before the edge are there; and a folio of four pages goes beyond it.
        if edge // 4096 % 4:
            python(_STORE_AT_EDGE, target / "file", str(edge))
            content[edge - 4096 + 7 : edge - 4096 + 10] = b"new"
            edges.append(edge)
    assert edges
    command.kill()
    for name in ("ar-standby", "ar-keeper"):
        rig.kill(name)
    command = rig.resume(target)
    rig.finish(command, target)
    found = (target / "file").read_bytes()
    assert [at for at in range(0, len(content), 4096) if found[at : at + 4096] != content[at : at + 4096]] == [], edges
    rig.assert_clean(target)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_power_cut(rig: Rig, tmp_path: Path, kind: str) -> None:
    """The disk as it was at one moment is put in the place of the disk; all that users did was synced before."""
    model = prepare(rig, kind)
    with mounted(kind, tmp_path / "disk", 600 * MIB) as disk:
        target = disk.mount / "target"
        command = rig.restore(target, *OPTIONS, "--limit", "1")
        with rig.control(target) as client:
            client.pause()
        act(target)
        image = tmp_path / "disk" / f"{kind}.img"
        subprocess.run(["sync", "--file-system", target], check=True)
        subprocess.run(["sync"], check=True)
        later = image.with_suffix(".later")
        subprocess.run(["cp", "--sparse=always", image, later], check=True)
        command.kill()
        for name in ("ar-standby", "ar-keeper"):
            rig.kill(name)
        subprocess.run(["umount", disk.mount], check=True)
        subprocess.run(["mount", "-o", "loop", later, disk.mount], check=True)
        assert [name for name in ACTIONS if marked(target / name)] == HALF
        command = rig.resume(target)
        rig.finish(command, target)
        compare(model, target, times=True)
        assert traces(target) == []
        rig.assert_clean(target)
