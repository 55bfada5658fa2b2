"""Runs inside the machine: make the file systems and run the selected tests on each. Argument: the exchange directory.

Its file ``tests`` has a line ``file system:test`` for each (they would not fit on the kernel's command line), its file
``environment`` is a JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_DISKS = {"ext4": ("/dev/vda", ["mkfs.ext4", "-q"]), "xfs": ("/dev/vdb", ["mkfs.xfs", "-q"])}
_PROJECT = Path(__file__).resolve().parents[2]
_HOST = Path("/run/host")
# Everything takes several times as long as on a machine of its own.
_DEADLINE_S = "400"
_PYTEST = ("-p", "no:cacheprovider", "-p", "tests.vm.report", "-v", "--color=no", "-o", "timeout=900")


def _read_faster() -> None:
    """Programs and libraries by a mount that keeps what it has read."""
    _HOST.mkdir()
    how = "ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000"
    subprocess.run(["mount", "-t", "9p", "-o", how, "host", _HOST], check=True)
    for place in {"/usr", sys.prefix, *(str(_PROJECT / name) for name in ("agent", "bpf", "tests"))}:
        subprocess.run(["mount", "--bind", f"{_HOST}{place}", place], check=True)


def main() -> None:
    """Each file system in turn; ``results.<file system>`` in the exchange directory gets a line for each test."""
    exchange = Path(sys.argv[1])
    tests = (exchange / "tests").read_text().splitlines()
    for module in ("virtio_blk", "loop", *_DISKS):
        subprocess.run(["modprobe", module], check=True)
    _read_faster()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    for name, (device, make) in _DISKS.items():
        selected = [test.partition(":")[2] for test in tests if test.startswith(f"{name}:")]
        if not selected:
            continue
        subprocess.run([*make, device], check=True)
        mount = Path("/run/disk") / name
        mount.mkdir(parents=True)
        subprocess.run(["mount", "-t", name, device, mount], check=True)
        subprocess.run(
            [sys.executable, "-m", "pytest", *_PYTEST, *selected],
            cwd=_PROJECT,
            env={
                **os.environ,
                **json.loads((exchange / "environment").read_text()),
                "ACTIVE_RESTORE_DISK": str(mount),
                "ACTIVE_RESTORE_TEST_INTERCEPTORS": "bpf",
                "ACTIVE_RESTORE_TEST_DISKS": ",".join(_DISKS),
                "ACTIVE_RESTORE_TEST_DEADLINE": _DEADLINE_S,
                "ACTIVE_RESTORE_RESULTS": str(exchange / f"results.{name}"),
                "PYTHONPATH": str(_PROJECT / "agent"),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            check=False,
        )


if __name__ == "__main__":
    main()
