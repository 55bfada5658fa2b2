"""Tests in this directory need a kernel that takes BPF LSM programs: ``tests/vm/test_kernels.py`` runs them in one.

Outside they are not collected. To run them on a machine of your own: ACTIVE_RESTORE_DISK=/mnt/an-ext4-or-xfs pytest ...
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.inside.territory import Guarded

_DISK = os.environ.get("ACTIVE_RESTORE_DISK")


def pytest_ignore_collect() -> bool | None:
    """Outside, only the collector of ``test_kernels`` may look in here."""
    return True if _DISK is None and "ACTIVE_RESTORE_COLLECT" not in os.environ else None


@pytest.fixture(scope="session")
def disk() -> Path:
    """A directory on the file system under test."""
    assert _DISK is not None
    return Path(_DISK)


@pytest.fixture(scope="session")
def session_guard(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """One armed interceptor for all tests that do not need their own: loading takes long on an emulated processor."""
    from tests.vm.inside.territory import Guarded

    with Guarded(disk / "session", tmp_path_factory.mktemp("run")) as guarded:
        yield guarded


@pytest.fixture
def guarded(session_guard: Guarded) -> Iterator[Guarded]:
    """The armed interceptor, with nobody waiting before and after."""
    yield session_guard
    session_guard.settle()
    assert session_guard.waiting() == []


@pytest.fixture(scope="module")
def module_guard(request: pytest.FixtureRequest, disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """BPF and its guard, for all tests of a module."""
    from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor
    from tests.vm.inside.territory import Guarded

    interceptor = GuardedBpfInterceptor(required=True)
    with Guarded(disk / request.module.__name__, tmp_path_factory.mktemp("run"), interceptor) as guarded:
        yield guarded


@pytest.fixture
def paired(module_guard: Guarded) -> Iterator[Guarded]:
    """BPF and its guard, with nobody waiting before and after."""
    yield module_guard
    module_guard.settle()
