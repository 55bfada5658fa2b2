"""With a fanotify guard beside BPF, the tasks that cannot be restarted are held, too (design, section 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from active_restore.errors import TargetError
from active_restore.intercept.bpf_guarded import GuardedBpfInterceptor
from active_restore.intercept.pins import directory
from tests.kernel.disks import mounted
from tests.vm.inside.odd import CORE_WAS_TAKEN, OPEN_BY_IO_URING, RINGS, TAKES_CORES, core_pattern, crash
from tests.vm.inside.territory import Child, Guarded, load_modules, python, until

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"what the backup holds\n" * 1000


def test_ordinary_task_is_held_by_bpf(paired: Guarded) -> None:
    path = paired.lay_now("plain", CONTENT)
    assert Child("cat", path).finish() == CONTENT.decode()
    assert paired.by_guard() == {False}


@pytest.mark.ci
def test_traced_task(paired: Guarded) -> None:
    path = paired.lay_now("traced", CONTENT)
    assert Child("strace", "-o", "/dev/null", "cat", path).finish() == CONTENT.decode()
    assert paired.by_guard() == {True}


def test_task_with_a_handler_for_sigcont(paired: Guarded) -> None:
    path = paired.lay_now("handler", CONTENT)
    code = "import signal, sys; signal.signal(signal.SIGCONT, print); print(len(open(sys.argv[1]).read()))"
    assert python(code, path).finish() == f"{len(CONTENT)}\n"
    assert paired.by_guard() == {True}


@pytest.mark.ci
@pytest.mark.parametrize(("setup_flags", "entry_flags"), RINGS.values(), ids=RINGS)
def test_io_uring(paired: Guarded, setup_flags: str, entry_flags: str) -> None:
    path = paired.lay_now(f"uring{setup_flags}-{entry_flags}", CONTENT)
    assert python(OPEN_BY_IO_URING, path, setup_flags, entry_flags).finish() == f"{len(CONTENT)}\n"
    assert paired.by_guard() == {True}


@pytest.mark.ci
def test_usermode_helper(paired: Guarded) -> None:
    """The kernel itself starts the program that takes core dumps."""
    path = paired.lay_now("core", TAKES_CORES, 0o755)
    with core_pattern(path):
        crash()
        until(CORE_WAS_TAKEN.exists, "the helper's work")
    assert paired.by_guard() == {True}


def test_where_inodes_have_no_numbers(tmp_path: Path) -> None:
    """BPF refuses and leaves nothing; where nobody insists on it, fanotify holds everybody."""
    load_modules("btrfs")
    with mounted("btrfs", tmp_path / "disk") as disk:
        root = disk.mount / "root"
        refused = Guarded(root, tmp_path)
        root.mkdir()
        with pytest.raises(TargetError, match="by number"):
            refused.interceptor.arm(refused.territory)
        assert not directory(refused.territory.restore_id).exists()
        with Guarded(root, tmp_path, GuardedBpfInterceptor(required=False)) as alone:
            path = alone.lay_now("plain", CONTENT)
            assert Child("cat", path).finish() == CONTENT.decode()
            assert alone.interceptor.name == "fanotify"
        assert not directory(refused.territory.restore_id).exists()
