"""One whole restore held by BPF, with everything in it that tasks do: starting an agent takes long on an emulated processor."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from active_restore.ebpf import abi
from active_restore.intercept.gates import Gates
from active_restore.intercept.pins import Pins
from tests.kernel.rig import Rig, add_decoys, marked
from tests.kernel.tasks import Task, python, read, run
from tests.vm.inside.territory import Child, state_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTENTS = {f"f{number}": os.urandom(500 * number).hex().encode() for number in range(1, 30)}

# As an agent of another restore is that has its source here.
_SPARED_ELSEWHERE = """
import sys
from active_restore.ebpf.spared import spared
with spared("another"):
    print(open(sys.argv[1]).read(), end="")
"""


@pytest.fixture
def rig(disk: Path) -> Iterator[Rig]:
    """A source with decoys first, so that the background leaves the rest alone. The state lies on the disk under guard."""
    place = disk / "whole.rig"
    tree = place / "source"
    tree.mkdir(parents=True)
    add_decoys(tree)
    for name, content in _CONTENTS.items():
        (tree / name).write_bytes(content)
    shutil.copy("/bin/true", tree / "program")
    rig = Rig(place, tree)
    yield rig
    left = rig.end()
    assert not left, f"processes were left: {left}"
    shutil.rmtree(place)


def _readers(target: Path) -> None:
    """By every way to read."""
    assert read(target / "f1") == _CONTENTS["f1"]
    assert run("dd", f"if={target}/f2", "bs=1k", "status=none") == _CONTENTS["f2"]
    run("cp", "--sparse=always", target / "f3", "/run/copy")
    assert Path("/run/copy").read_bytes() == _CONTENTS["f3"]
    assert run("sh", "-c", f"tar -C {target} -cf - f4 | tar -xOf -") == _CONTENTS["f4"]
    run(target / "program")
    # Traced by a stranger: the guard beside BPF holds it.
    assert run("strace", "-f", "-o", "/dev/null", "cat", target / "f5") == _CONTENTS["f5"]
    tasks = {name: Task("cat", target / name) for name in (f"f{number}" for number in range(6, 14))}
    for name, task in tasks.items():
        with task:
            assert task.output() == _CONTENTS[name]


def _write(root: Path) -> None:
    """What writers do, and nothing but content differs afterwards."""
    names = ("f14", "f15", "f16", "f17")
    kept = {name: os.stat(root / name) for name in names}
    python("fd = os.open(sys.argv[1], os.O_RDWR); os.pwrite(fd, b'mine', 5)", root / "f14")
    run("sh", "-c", f"printf more >> {root}/f15")
    run("sh", "-c", f"printf new > {root}/f16")
    run("truncate", "-s", "100", root / "f17")
    # Unmarked before the writer went on.
    assert not [name for name in names if marked(root / name)]
    for name, before in kept.items():
        os.utime(root / name, ns=(before.st_atime_ns, before.st_mtime_ns))


def _hold(path: Path, files: list[Path]) -> None:
    """As if these had been made under the numbers of placeholders that were deleted."""
    with contextlib.closing(Pins(path)) as pins:
        gates = Gates(pins.maps["gate"], abi.load().structs["gate_word"], empty=False)
        gates.close_all(np.array([file.stat().st_ino for file in files], np.uint64))


def _pins() -> set[Path]:
    return set(Path("/sys/fs/bpf").glob("active_restore/*"))


@pytest.mark.ci("6.12")
def test_from_beginning_to_end(rig: Rig, disk: Path) -> None:
    target, others = disk / "whole", _pins()
    command = rig.start("restore", rig.source, target, "--interceptor", "auto", "--limit", "1")
    command.until("ready")
    with rig.control(target) as client:
        assert client.status().interceptor == "bpf"
    assert marked(target / "f1")
    (ours,) = _pins() - others
    _readers(target)
    _write(target)
    command.kill()
    late = [Child("cat", target / "f18"), Child(sys.executable, "-c", _SPARED_ELSEWHERE, target / "f19")]
    until(lambda: all(state_of(child.pid) == "T" for child in late), "stops, once the agent's heartbeat is old")
    _hold(ours, [file for name in ("state", "run") for file in (rig.place / name).rglob("*") if file.is_file()])
    assert str(target) in rig.run("status").stdout
    again = rig.resume(target)
    assert [child.finish().encode() for child in late] == [_CONTENTS["f18"], _CONTENTS["f19"]]
    rig.finish(again, target)
    _write(rig.tree)
    rig.verify(target)
    assert _pins() == others
