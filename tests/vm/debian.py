"""Debian itself in a directory, with our package: made by ``make deb`` and debootstrap from the machine's own mirror."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

from tests.vm.kernels import BUILD

_PROJECT = Path(__file__).parents[2]
_WITH = "systemd,systemd-sysv,udev,python3,kmod,e2fsprogs,init-system-helpers"


def mirror() -> tuple[str, str]:
    """Suite and address that apt of this machine uses."""
    told = subprocess.run(["apt-cache", "policy", "debootstrap"], capture_output=True, text=True, check=True).stdout
    words = next(line.split() for line in told.splitlines() if "/main " in line and "http" in line)
    return words[2].partition("/")[0], words[1]


@cache
def system() -> Path:
    """A small Debian, made once. It is not to be changed: work on a copy."""
    root = BUILD / "debian"
    if not (root / "usr/bin/systemctl").exists():
        shutil.rmtree(root, ignore_errors=True)
        suite, address = mirror()
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={_WITH}", suite, root, address], check=True)
    return root


@cache
def package() -> Path:
    """Our package, built now."""
    subprocess.run(["make", "-s", "deb"], cwd=_PROJECT, check=True)
    (built,) = (_PROJECT / "build/deb").glob("active-restore_*.deb")
    return built


def copy_to(place: Path, original: Path | None = None) -> Path:
    """A copy of the system (or of another one made of it) with the package file in ``/root``."""
    subprocess.run(["cp", "-a", "--reflink=auto", original or system(), place], check=True)
    shutil.copy(package(), place / "root/active-restore.deb")
    return place


def inside(root: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in the system, without booting it."""
    command: list[str | Path] = ["chroot", root, "/bin/sh", "-ec", f"export DEBIAN_FRONTEND=noninteractive\n{script}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
