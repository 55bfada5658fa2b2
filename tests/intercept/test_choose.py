"""Which interceptor ``auto`` takes, and what it says about that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from active_restore.config import RestoreOptions
from active_restore.errors import CapabilityMissing
from active_restore.intercept import choose as module
from active_restore.intercept.choose import choose

if TYPE_CHECKING:
    from active_restore.config import InterceptorName
    from active_restore.intercept.base import Territory
    from tests.kernel.disks import Disk

_NOBODY = "00000000000000ee"


def _refuse(hook_id: int) -> None:
    raise PermissionError(1, f"hook {hook_id}")


def _accept(hook_id: int) -> None:
    """As a kernel that takes programs."""


@pytest.fixture(params=["refused", "accepted"])
def booted_with_bpf(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A kernel with ``bpf`` in ``lsm=``; whether it takes programs."""
    takes = bool(request.param == "accepted")
    monkeypatch.setattr(module, "active_modules", lambda: ["capability", "bpf"])
    monkeypatch.setattr("active_restore.ebpf.capability._load", _accept if takes else _refuse)
    return takes


def _chosen(root: str, name: InterceptorName = "auto", ranges: tuple[str, ...] = ()) -> tuple[str, str]:
    chosen = choose(RestoreOptions("", root, interceptor=name, ranges=ranges), _NOBODY)
    return chosen.name, chosen.reason


def test_kernel_without_the_module(territory: Territory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "active_modules", lambda: ["capability", "yama"])
    assert _chosen(territory.root) == ("fanotify", "bpf is not in lsm=")


def test_where_programs_load(territory: Territory, booted_with_bpf: bool) -> None:
    refusal = ("fanotify", "Loading BPF LSM programs is refused (EPERM)")
    assert _chosen(territory.root) == (("bpf", "") if booted_with_bpf else refusal)
    assert _chosen(territory.root, "fanotify") == ("fanotify", "asked for")


def test_files_by_range(territory: Territory, booted_with_bpf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pre-content events where the kernel has them; else programs."""
    monkeypatch.setattr("active_restore.intercept.group.check_ranges", lambda _: None)
    assert _chosen(territory.root, ranges=("*",)) == ("fanotify", "files by range wait by pre-content events")
    monkeypatch.setattr("active_restore.intercept.group.check_ranges", _refuse)
    assert _chosen(territory.root, ranges=("*",))[0] == ("bpf" if booted_with_bpf else "fanotify")


def test_where_inodes_have_no_numbers(disk: Disk, booted_with_bpf: bool) -> None:
    name, reason = _chosen(str(disk.mount))
    assert (name == "bpf") == (booted_with_bpf and disk.kind != "btrfs"), reason


@pytest.mark.usefixtures("booted_with_bpf")
def test_insisted_on(territory: Territory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("active_restore.ebpf.capability.check_lsm", _missing)
    with pytest.raises(CapabilityMissing):
        choose(RestoreOptions("", territory.root, interceptor="bpf"), _NOBODY)


def _missing() -> None:
    raise CapabilityMissing("No.")
