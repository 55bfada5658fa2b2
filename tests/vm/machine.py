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
_DISK_BYTES = 2 << 30
_MEMORY = "3G"
# This machine's files once more, by a mount that keeps what it has read (``guest.py``): the one that virtme-ng makes
# asks for everything each time that a process starts.
_HOST = (
    "-fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap "
    "-device virtio-9p-pci,fsdev=host,mount_tag=host"
)
_TAIL_LINES = 60
_PANIC = (b"Kernel panic", b"PANIC: early exception")


class Hung(Exception):
    """The machine did not end in time, or its kernel panicked; the message holds the end of its console."""


def run(kernel: Kernel, command: list[str], exchange: Path, disks: list[str], timeout_s: float) -> str:
    """Run ``command`` as root inside; returns the console's text. ``exchange`` is writable inside, disks are empty.

    Everything else of this machine is readable inside and writable into memory only. Raises ``Hung``.
    """
    images = [_make_disk(exchange / f"{name}.img") for name in disks]
    tools = Path(sys.executable).parent
    words = [str(tools / "vng"), "--run", str(kernel.image), "--disable-kvm", "--force-9p", "--verbose"]
    words += ["--cpus", "2", "--memory", _MEMORY, "--rwdir", str(exchange), "--append", _LSM]
    words += [f"--qemu-opts={_HOST}"]
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
            _wait(machine, console, timeout_s)
        finally:
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGKILL)
                machine.wait()
            for image in images:
                image.unlink()
    return tail(console)


def _wait(machine: subprocess.Popen[bytes], console: Path, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            machine.wait(1)
            return
        panic = any(word in console.read_bytes() for word in _PANIC)
        if panic or time.monotonic() > end:
            what = "the kernel panicked" if panic else f"did not end within {timeout_s:.0f} s"
            raise Hung(f"{what}\n{tail(console)}")


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])


def _make_disk(path: Path) -> Path:
    with path.open("wb") as image:
        image.truncate(_DISK_BYTES)
    return path
