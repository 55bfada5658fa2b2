"""Boot a kernel with virtme-ng on this machine's own files, run a command inside, and end it whatever happens."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.vm.kernels import Kernel

_LSM = "lsm=landlock,lockdown,yama,integrity,apparmor,bpf"
# An emulated processor leaks nothing to itself, and pays much for each detour.
_FAST = "mitigations=off tsc=reliable"
# Those whose file systems are tested, and one for what tests need besides; only what is written takes room.
DISKS = {"ext4": 2 << 30, "xfs": 2 << 30, "scratch": 8 << 30}
_MEMORY = "3G"
# This machine's files once more, by a mount that keeps what it has read (``guest.py``): the one that virtme-ng makes
# asks for everything each time that a process starts.
_HOST = (
    "-fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap "
    "-device virtio-9p-pci,fsdev=host,mount_tag=host"
)
# Six of these with 64 queues each: QEMU would look at a descriptor for every one of them each time that anything happens, which
# was an eighth of all the processor time of a machine.
_FEWER = "-global virtio-serial-pci.ioeventfd=off"
# Tests that run beside it on this machine go first.
_NICE = 5
_TAIL_LINES = 60
# It takes 20 s where nothing else runs.
_BOOT_S = 300
_PANIC = (b"Kernel panic", b"PANIC: early exception")


class Hung(Exception):
    """The machine did not end in time, or its kernel panicked; the message holds the end of its console."""


def run(kernel: Kernel, command: list[str], exchange: Path, timeout_s: float) -> str:
    """Run ``command`` as root inside; returns the console's text. ``exchange`` is writable inside, ``DISKS`` are empty.

    Everything else of this machine is readable inside and writable into memory only. The command makes the file ``begun`` in
    the exchange directory first of all: a machine that does not get so far is ended and started once more. Raises ``Hung``.
    """
    for is_last in (False, True):
        try:
            return _boot(kernel, command, exchange, timeout_s)
        except Hung:
            if is_last or (exchange / "begun").exists():
                raise
            (exchange / "console").rename(exchange / "console.first")
    raise AssertionError


def _boot(kernel: Kernel, command: list[str], exchange: Path, timeout_s: float) -> str:
    images = [_make_disk(exchange / f"{name}.img", size) for name, size in DISKS.items()]
    tools = Path(sys.executable).parent
    words = [
        "nice",
        "-n",
        str(_NICE),
        str(tools / "vng"),
        "--run",
        str(kernel.image),
        "--disable-kvm",
        "--force-9p",
        "--verbose",
    ]
    words += ["--cpus", "2", "--memory", _MEMORY, "--rwdir", str(exchange), "--append", _LSM, "--append", _FAST]
    words += [f"--qemu-opts={_HOST} {_FEWER}"]
    words += [word for image in images for word in ("--disk", str(image))]
    words += ["--exec", f"{shlex.join(command)} > {shlex.quote(str(exchange / 'output'))} 2>&1"]
    console = exchange / "console"
    with console.open("wb") as log:
        machine = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
            start_new_session=True,
        )
        try:
            _wait(machine, console, exchange / "begun", timeout_s)
        finally:
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGKILL)
                machine.wait()
            for image in images:
                image.unlink()
    return tail(console)


def _wait(machine: subprocess.Popen[bytes], console: Path, begun: Path, timeout_s: float) -> None:
    start = time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            machine.wait(1)
            return
        what, passed_s = "", time.monotonic() - start
        if any(word in console.read_bytes() for word in _PANIC):
            what = "the kernel panicked"
        elif passed_s > _BOOT_S and not begun.exists():
            what = f"did not boot within {_BOOT_S:.0f} s"
        elif passed_s > timeout_s:
            what = f"did not end within {timeout_s:.0f} s"
        if what:
            raise Hung(f"{what}\n{tail(console)}")


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])


def _make_disk(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as image:
        image.truncate(size_bytes)
    return path
