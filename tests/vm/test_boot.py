"""The service with systemd as PID 1: what ``boot/drive`` tries in a Debian of its own, over a crash of the machine.

For each interceptor, two boots: the second one follows a crash in the middle of a restore, and something reads a placeholder
right behind ``local-fs.target``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vm import debian
from tests.vm.kernels import BUILD, kernels
from tests.vm.machine import tail

if TYPE_CHECKING:
    from tests.vm.kernels import Kernel

pytestmark = [pytest.mark.vm, pytest.mark.timeout(0)]

_HERE = Path(__file__).parent / "boot"
_TIMEOUT_S = float(os.environ.get("ACTIVE_RESTORE_VM_SECONDS", "3000"))
_NEEDS = "initramfs-tools procps python3-bpfcc"
_FSTAB = "/dev/vda / ext4 defaults 0 1\n/dev/vdb /srv ext4 defaults 0 2\n"


def _system(kernel: Kernel) -> Path:
    """A Debian with what ``boot/drive`` needs, and beside it an initrd that finds its disks; made once."""
    place = BUILD / "boot"
    made = place / "made-with"
    if not made.exists() or made.read_text() != _NEEDS:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        root = debian.copy_to(place / "root")
        (modules,) = (kernel.directory / "lib/modules").iterdir()
        (root / "usr/lib/modules").mkdir(exist_ok=True)
        subprocess.run(["cp", "-a", modules, root / "usr/lib/modules/"], check=True)
        for config in (kernel.directory / "boot").glob("config-*"):
            shutil.copy(config, root / "boot")
        done = debian.inside(
            root,
            f"""
            apt-get update -q && apt-get install -y -q --no-install-recommends {_NEEDS}
            printf 'virtio_pci\\nvirtio_blk\\next4\\n' >>/etc/initramfs-tools/modules
            sed -i 's/^MODULES=.*/MODULES=list/' /etc/initramfs-tools/initramfs.conf
            depmod {modules.name} && mkinitramfs -o /boot/initrd {modules.name}
            apt-get clean && rm -r /usr/lib/modules/* /var/lib/apt/lists/*
            """,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        shutil.move(root / "boot/initrd", place / "initrd")
        made.write_text(_NEEDS)
    return place


def prepare(place: Path, interceptor: str) -> list[str]:
    """Disks of a Debian with our package and ``boot/drive``; the words for QEMU."""
    kernel = kernels()["6.12"]
    system = _system(kernel)
    root = debian.copy_to(place / "root", system / "root")
    shutil.copy(_HERE / "drive", root / "root/drive")
    for unit in _HERE.glob("*.service"):
        shutil.copy(unit, root / "etc/systemd/system")
    (root / "etc/fstab").write_text(_FSTAB)
    done = debian.inside(root, "dpkg -i /root/active-restore.deb && systemctl enable early.service driver.service")
    assert done.returncode == 0, done.stdout + done.stderr
    for name, size in (("root", "3G"), ("srv", "512M")):
        subprocess.run(["truncate", "-s", size, place / f"{name}.img"], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-d", root, place / "root.img"], check=True)
    subprocess.run(["mkfs.ext4", "-q", place / "srv.img"], check=True)
    shutil.rmtree(root)
    drives = [
        word for name in ("root", "srv") for word in ("-drive", f"file={place / name}.img,if=virtio,format=raw,cache=unsafe")
    ]
    # Nobody logs in, and each line of a console of an emulated machine costs.
    mask = ("e2scrub_reap.service", "getty.target", "systemd-logind.service", "systemd-update-utmp-runlevel.service")
    append = f"active_restore.interceptor={interceptor} lsm=landlock,lockdown,yama,integrity,apparmor,bpf "
    append += (
        "root=/dev/vda rw console=ttyS0 panic=-1 no_timer_check mitigations=off tsc=reliable quiet systemd.show_status=no "
    )
    append += " ".join(f"systemd.mask={unit}" for unit in mask)
    words = ["qemu-system-x86_64", "-nographic", "-nic", "none", "-m", "1500M", "-smp", "2", "-cpu", "max"]
    return [*words, "-kernel", str(kernel.image), "-initrd", str(system / "initrd"), "-append", append, *drives]


@pytest.mark.parametrize("interceptor", ["fanotify", "bpf"])
def test_boot_crash_restart_resume(interceptor: str) -> None:
    place = BUILD / "runs" / f"boot-{interceptor}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    command = prepare(place, interceptor)
    console = place / "console"
    with console.open("wb") as log:
        with subprocess.Popen(["nice", "-n", "10", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log) as machine:
            with contextlib.suppress(subprocess.TimeoutExpired):
                machine.wait(_TIMEOUT_S)
            machine.kill()
    found = re.findall(r"RESULT (.*?) (ok|FAILED)\r?$", console.read_text(errors="replace"), re.MULTILINE)
    results = dict(found)
    assert {"stage one", "early reader", "stage two"} <= results.keys(), tail(console)
    assert [what for what, outcome in found if outcome != "ok"] == [], tail(console)
