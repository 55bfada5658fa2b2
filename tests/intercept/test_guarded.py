"""BPF with a guard beside it, as far as that can be seen where the kernel takes no programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from active_restore.errors import CapabilityMissing
from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor
from active_restore.intercept.fanotify import FanotifyInterceptor
from active_restore.linux.process import is_alive
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from active_restore.intercept.base import Territory


def _end(interceptor: FanotifyInterceptor | GuardedBpfInterceptor, keeper: int) -> None:
    interceptor.disarm()
    wait_until(lambda: not is_alive(keeper), "the keeper has ended")


def test_guard_without_programs_goes_on_alone(territory: Territory) -> None:
    """An agent died before its programs were loaded, or somebody removed their pins."""
    first = FanotifyInterceptor()
    first.arm(territory)
    keeper = first.keeper_pid
    first.leave()
    guarded = GuardedBpfInterceptor(required=True)
    assert guarded.adopt(territory)
    assert (guarded.name, guarded.reason) == ("fanotify", "the last agent left a guard without programs")
    assert not guarded.needs_inode_numbers
    assert guarded.serve_threads == first.serve_threads
    guarded.settled([1, 2, 3])
    _end(guarded, keeper)


def test_nothing_to_adopt(territory: Territory) -> None:
    guarded = GuardedBpfInterceptor(required=True)
    assert not guarded.adopt(territory)
    assert guarded.name == "bpf"


def test_programs_that_do_not_load(territory: Territory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who insists on them is told why, and no guard is left; else the guard holds everybody."""
    monkeypatch.setattr("active_restore.ebpf.capability._load", _refuse)
    with pytest.raises(CapabilityMissing):
        GuardedBpfInterceptor(required=True).arm(territory)
    guarded = GuardedBpfInterceptor(required=False)
    guarded.arm(territory)
    assert guarded.name == "fanotify"
    assert guarded.reason
    _end(guarded, guarded._guard.keeper_pid)


def _refuse(hook_id: int) -> None:
    raise PermissionError(1, f"hook {hook_id}")
