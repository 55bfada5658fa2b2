"""What the BPF hooks cost a task that opens other files: ``python -m bench.vm_cost KERNEL`` boots a machine and measures in it.

open(2) + close(2) of one file that is no placeholder, hooks attached and not attached in alternating rounds of one run. The
machine is emulated, so only the ratio means something.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.ebpf import maps
from active_restore.intercept.base import Territory
from active_restore.intercept.bpf_lsm import BpfInterceptor
from active_restore.intercept.pins import directory
from active_restore.marker import marker_prefix
from tests.vm import machine
from tests.vm.kernels import BUILD, kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROUNDS, _OPENS = 40, 2000
_RESTORE_ID = "00112233445566ff"
_PROG_BY_ID, _ATTACH = 13, 17
_TIMEOUT_S = 600


def main() -> None:
    """On the host without a second argument, inside with one."""
    if len(sys.argv) > 2:
        inside(Path(sys.argv[2]))
        return
    exchange = BUILD / "cost"
    shutil.rmtree(exchange, ignore_errors=True)
    exchange.mkdir(parents=True)
    command = ["env", f"PYTHONPATH={Path.cwd()}/agent:{Path.cwd()}", sys.executable, "-m", "bench.vm_cost"]
    command = ["sh", "-c", f"cd {Path.cwd()} && exec {' '.join(command)} {sys.argv[1]} {exchange}"]
    machine.run(kernels()[sys.argv[1]], command, exchange, ["ext4"], _TIMEOUT_S)
    print((exchange / "output").read_text())


def inside(exchange: Path) -> None:
    """Measure; prints one JSON object."""
    for words in (["modprobe", "virtio_blk"], ["modprobe", "ext4"], ["mkfs.ext4", "-q", "/dev/vda"]):
        subprocess.run(words, check=True)
    disk, run_dir = Path("/run/disk"), Path("/run/cost")
    disk.mkdir()
    run_dir.mkdir()
    subprocess.run(["mount", "/dev/vda", disk], check=True)
    interceptor = BpfInterceptor()
    interceptor.arm(Territory(str(disk), _RESTORE_ID, marker_prefix(_RESTORE_ID), str(run_dir), 1000))
    file = disk / "other"
    file.write_bytes(b"x")
    # Neighbours are placeholders: the word of the inode exists, which is the dearer case.
    inode = file.stat().st_ino
    interceptor.add([(1, inode ^ 1)])
    programs = list(_programs())
    for pin in directory(_RESTORE_ID).glob("link_*"):
        pin.unlink()
    with_hooks, without = [], []
    for _ in range(_ROUNDS):
        links = [maps.bpf(_ATTACH, struct.pack("=QI4x", 0, program), "attach") for program in programs]
        with_hooks.append(_time_opens(file))
        for link in links:
            os.close(link)
        without.append(_time_opens(file))
    ratio = statistics.median(a / b for a, b in zip(with_hooks, without, strict=True))
    nanoseconds = [round(statistics.median(times) / _OPENS * 1e9) for times in (with_hooks, without)]
    print(json.dumps({"ratio": round(ratio, 3), "ns_with": nanoseconds[0], "ns_without": nanoseconds[1]}))
    interceptor.disarm()
    (exchange / "done").touch()


def _programs() -> Iterator[int]:
    """Descriptors of the pinned LSM programs, by way of their links."""
    for pin in directory(_RESTORE_ID).glob("link_*"):
        link = maps.open_pin(pin)
        info = maps.info(link, pin.name)
        os.close(link)
        kind, _link_id, program_id = struct.unpack_from("=III", info)
        # BPF_LINK_TYPE_TRACING; the tracepoint at the end of threads stays out.
        if kind == 2:
            yield maps.bpf(_PROG_BY_ID, struct.pack("=II", program_id, 0), pin.name)


def _time_opens(path: Path) -> float:
    name = os.fsencode(path)
    begin = time.perf_counter()
    for _ in range(_OPENS):
        os.close(os.open(name, os.O_RDONLY))
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
