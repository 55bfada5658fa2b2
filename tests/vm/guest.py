"""Runs inside the machine: make the file systems, then run the selected tests on each, or a command. Argument: the exchange
directory.

Its file ``tests`` has a line ``file system:test`` for each (they would not fit on the kernel's command line), its file
``environment`` is a JSON object. Where there is a file ``command`` (a JSON list of words), that is run instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_DISKS = {"ext4": ("/dev/vda", ["mkfs.ext4", "-q"]), "xfs": ("/dev/vdb", ["mkfs.xfs", "-q"])}
# For sources, states and images of the tests, where /tmp does not do. What they make durable is not worth a journal.
_SCRATCH, _SCRATCH_PLACE = "/dev/vdc", Path("/run/scratch")
_PROJECT = Path(__file__).resolve().parents[2]
_HOST = Path("/run/host")
_CGROUPS = Path("/sys/fs/cgroup")
_MODULES = Path("/run/modules/lib/modules")
# Everything takes several times as long as on a machine of its own.
_DEADLINE_S = "400"
_PYTEST = ("-p", "no:cacheprovider", "-p", "tests.vm.report", "-v", "--color=no", "-o", "timeout=900")


def _read_faster() -> None:
    """Programs and libraries by a mount that keeps what it has read. Modules of the kernel: ``modprobe -d /run/modules``."""
    _MODULES.mkdir(parents=True)
    subprocess.run(["mount", "--bind", "/lib/modules", _MODULES], check=True)
    _HOST.mkdir()
    how = "ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000"
    subprocess.run(["mount", "-t", "9p", "-o", how, "host", _HOST], check=True)
    for place in {"/usr", sys.prefix, *(str(_PROJECT / name) for name in ("agent", "bench", "bpf", "demo", "tests"))}:
        subprocess.run(["mount", "--bind", f"{_HOST}{place}", place], check=True)


def _make_disk(name: str) -> Path:
    """A new file system of this kind, mounted."""
    device, make = _DISKS[name]
    subprocess.run([*make, device], check=True)
    mount = Path("/run/disk") / name
    mount.mkdir(parents=True)
    subprocess.run(["mount", "-t", name, device, mount], check=True)
    return mount


@cache
def _scratch() -> Path:
    """/tmp, or another directory where that is a tmpfs without user xattrs (before 6.6)."""
    with tempfile.NamedTemporaryFile() as probe, contextlib.suppress(OSError):
        os.setxattr(probe.fileno(), "user.probe", b"")
        return Path(tempfile.gettempdir())
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", _SCRATCH], check=True)
    _SCRATCH_PLACE.mkdir()
    subprocess.run(["mount", "-t", "ext4", "-o", "nobarrier", _SCRATCH, _SCRATCH_PLACE], check=True)
    return _SCRATCH_PLACE


def _run(exchange: Path, words: list[str], **more: str) -> int:
    """A program of this project with the files of this project; its exit code."""
    environment = {
        **os.environ,
        **json.loads((exchange / "environment").read_text()),
        "PATH": f"{sys.prefix}/bin{os.pathsep}/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": f"{_PROJECT}{os.pathsep}{_PROJECT / 'agent'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }
    return subprocess.run(words, cwd=_PROJECT, env=environment, check=False).returncode


def _run_tests(exchange: Path, name: str, tests: list[str]) -> None:
    """Those for one file system; ``results.<file system>`` in the exchange directory gets a line for each."""
    _run(
        exchange,
        [sys.executable, "-m", "pytest", *_PYTEST, f"--basetemp={_scratch() / f'tests-{name}'}", *tests],
        ACTIVE_RESTORE_DISK=str(_make_disk(name)),
        ACTIVE_RESTORE_TEST_INTERCEPTORS="bpf",
        ACTIVE_RESTORE_TEST_DISKS=",".join(_DISKS),
        ACTIVE_RESTORE_TEST_DEADLINE=_DEADLINE_S,
        ACTIVE_RESTORE_RESULTS=str(exchange / f"results.{name}"),
    )


def main() -> None:
    """Each file system in turn, or the command with all of them."""
    exchange = Path(sys.argv[1])
    (exchange / "begun").touch()
    for module in ("virtio_blk", "loop", "fuse", "overlay", *_DISKS):
        subprocess.run(["modprobe", module], check=True)
    _read_faster()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    if not (_CGROUPS / "cgroup.controllers").exists():
        subprocess.run(["mount", "-t", "cgroup2", "none", _CGROUPS], check=True)
    if (exchange / "command").exists():
        for name in _DISKS:
            _make_disk(name)
        code = _run(exchange, json.loads((exchange / "command").read_text()))
        (exchange / "code").write_text(str(code))
        return
    tests = (exchange / "tests").read_text().splitlines()
    for name in _DISKS:
        if selected := [test.partition(":")[2] for test in tests if test.startswith(f"{name}:")]:
            _run_tests(exchange, name, selected)


if __name__ == "__main__":
    main()
