"""LVM below the target: a snapshot is taken while it is filled. Device mapper is what these kernels have."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.fixtures import held_rig, rig
from tests.kernel.rig import marked
from tests.kernel.tasks import read
from tests.restore.agents import make
from tests.vm.inside.territory import load_modules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.rig import Rig

__all__ = ["held_rig", "rig"]
MIB = 1 << 20
_GROUP = "active-restore-test"
# There is no udev in the machine, and nobody to watch.
_CONFIG = (
    "activation { udev_sync=0 udev_rules=0 verify_udev_operations=1 monitoring=0 } "
    'devices { use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source="none" } '
    "backup { backup=0 archive=0 }"
)
_MKFS = {"ext4": ("mkfs.ext4", "-q"), "xfs": ("mkfs.xfs", "-q")}
_COPY_OPTIONS = {"ext4": "defaults", "xfs": "nouuid"}
_REFUSED = 16
_BYTES_PER_S = 10_000


def _lvm(command: str, *words: str | Path) -> None:
    done = subprocess.run([command, "--config", _CONFIG, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)


@pytest.fixture
def volume(disk: Path) -> Iterator[Path]:
    """A logical volume in a group with room for a snapshot; the directory of their devices."""
    load_modules("dm-snapshot")
    image = disk / "physical"
    with image.open("wb") as file:
        file.truncate(900 * MIB)
    found = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
    device = found.stdout.strip()
    try:
        _lvm("vgcreate", _GROUP, device)
        try:
            _lvm("lvcreate", "--yes", "--size", "400m", "--name", "data", _GROUP)
            yield Path("/dev", _GROUP)
        finally:
            _lvm("vgremove", "--yes", "--force", _GROUP)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()


def test_snapshot_while_it_is_filled(held_rig: Rig, volume: Path, disk: Path, tmp_path: Path) -> None:
    """The restore goes on; of the snapshot ``resume`` makes the whole backup, once the original is restored."""
    names = make(held_rig.tree, 60, 100_000)
    mount, copy = tmp_path / "mount", tmp_path / "copy"
    with contextlib.ExitStack() as stack:
        for place in (mount, copy):
            place.mkdir()
        subprocess.run([*_MKFS[disk.name], volume / "data"], check=True)
        subprocess.run(["mount", volume / "data", mount], check=True)
        stack.callback(_unmount, mount)
        command = held_rig.hold(mount / "t")
        assert read(mount / "t" / names[0]) == (held_rig.tree / names[0]).read_bytes()
        with held_rig.control(mount / "t") as client:
            # Something is filled all the time, and it does not come to its end meanwhile, however slow this machine is.
            client.limit(_BYTES_PER_S)
            client.promote([name.encode() for name in names[30:]])
        _lvm("lvcreate", "--yes", "--snapshot", "--size", "300m", "--name", "copy", f"{_GROUP}/data")
        for name in names[1:4]:
            assert read(mount / "t" / name) == (held_rig.tree / name).read_bytes()
        subprocess.run(["mount", "-o", _COPY_OPTIONS[disk.name], volume / "copy", copy], check=True)
        stack.callback(_unmount, copy)
        inside = copy / "t"
        assert (inside / names[0]).read_bytes() == (held_rig.tree / names[0]).read_bytes()
        assert all(marked(inside / name) for name in names[1:4])
        done = held_rig.run("resume", inside)
        assert (done.returncode, "is a copy of" in done.stderr) == (_REFUSED, True), done.stderr
        held_rig.finish(command, mount / "t")
        held_rig.verify(mount / "t")
        again = held_rig.resume(inside)
        assert read(inside / names[1]) == (held_rig.tree / names[1]).read_bytes()
        held_rig.finish(again, inside)
        held_rig.verify(inside)


def _unmount(mount: Path) -> None:
    subprocess.run(["umount", mount], check=True)
