"""Machines that hang are ended, and told of; one that never boots is started once more. A script plays the machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.waiting import wait_until
from tests.vm import machine
from tests.vm.kernels import Kernel

if TYPE_CHECKING:
    from collections.abc import Callable

# A shell says a line in that time, whatever else runs.
_ENOUGH_S = 6
_HANG = "echo $$ >>{0}/pids; echo the console; sleep 1000 & wait"
_WORK = "touch {0}/begun; echo it works"


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], str]:
    """Runs a machine that does what a script says."""
    boot = tmp_path / "kernel/boot"
    boot.mkdir(parents=True)
    (boot / "vmlinuz-0").touch()

    def run(script: str, boot_s: float) -> str:
        tool = tmp_path / "vng"
        tool.write_text(f"#!/bin/sh\n{script.format(tmp_path)}\n")
        tool.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setattr(machine, "_BOOT_S", boot_s)
        return machine.run(Kernel("0", tmp_path / "kernel"), ["true"], tmp_path, _ENOUGH_S)

    return run


def _all_are_gone(place: Path, count: int) -> None:
    pids = (place / "pids").read_text().split()
    assert len(pids) == count
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the machines are gone")
    assert not list(place.glob("*.img"))


def test_started_once_more(scripted: Callable[[str, float], str], tmp_path: Path) -> None:
    first = f"if [ ! -e {{0}}/pids ]; then {_HANG}; fi; {_WORK}"
    assert scripted(first, _ENOUGH_S - 1) == "it works"
    assert (tmp_path / "console.first").read_text() == "the console\n"
    _all_are_gone(tmp_path, 1)


def test_never_boots(scripted: Callable[[str, float], str], tmp_path: Path) -> None:
    with pytest.raises(machine.Hung, match="did not boot within 5 s\nthe console"):
        scripted(_HANG, _ENOUGH_S - 1)
    _all_are_gone(tmp_path, 2)


def test_hangs_in_a_test(scripted: Callable[[str, float], str], tmp_path: Path) -> None:
    with pytest.raises(machine.Hung, match="did not end within 6 s\nit works\nthe console"):
        scripted(f"{_WORK}; {_HANG}", 60)
    _all_are_gone(tmp_path, 1)


def test_panics(scripted: Callable[[str, float], str], tmp_path: Path) -> None:
    with pytest.raises(machine.Hung, match="the kernel panicked"):
        scripted(f"echo Kernel panic - not syncing; {_HANG}", 60)
    _all_are_gone(tmp_path, 2)
