"""Tasks that cannot be restarted, where no guard is beside BPF: they are to try again (EAGAIN), and never see zeros."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import pytest

from active_restore.intercept.pins import Pins, directory
from tests.vm.inside.odd import CORE_WAS_TAKEN, OPEN_BY_IO_URING, RINGS, TAKES_CORES, core_pattern, crash, exported
from tests.vm.inside.territory import Child, python, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.inside.territory import Guarded

CONTENT = b"what the backup holds\n" * 1000


@pytest.mark.parametrize(
    "prelude",
    ["import signal; signal.signal(signal.SIGCONT, print)", "import signal; signal.pthread_sigmask(0, [signal.SIGCONT])"],
    ids=["SIGCONT handler", "SIGCONT blocked"],
)
def test_signal_that_cannot_be_used(guarded: Guarded, prelude: str) -> None:
    row = guarded.lay("odd" + prelude[-12:-9], CONTENT)
    code = f"{prelude}\nimport sys\ntry: open(sys.argv[1])\nexcept OSError as error: print(error.errno)"
    assert python(code, guarded.paths[row]).finish() == f"{errno.EAGAIN}\n"
    assert guarded.of(row) == []


def test_traced_task(guarded: Guarded) -> None:
    row = guarded.lay("traced", CONTENT)
    assert "temporarily unavailable" in Child("strace", "-f", "-o", "/dev/null", "cat", guarded.paths[row]).finish()
    assert guarded.of(row) == []


@pytest.mark.parametrize(("setup_flags", "entry_flags"), RINGS.values(), ids=RINGS)
def test_io_uring(guarded: Guarded, setup_flags: str, entry_flags: str) -> None:
    """A completion with the kernel's own errno would be the worst of it."""
    row = guarded.lay(f"uring{setup_flags}-{entry_flags}", CONTENT)
    assert python(OPEN_BY_IO_URING, guarded.paths[row], setup_flags, entry_flags).finish() == f"{-errno.EAGAIN}\n"
    assert guarded.of(row) == []
    guarded.fill(row)
    assert python(OPEN_BY_IO_URING, guarded.paths[row], setup_flags, entry_flags).finish() == f"{len(CONTENT)}\n"


def test_usermode_helper(guarded: Guarded) -> None:
    """It is not started, and the next one is, once its program is there."""
    row = guarded.lay("core", TAKES_CORES, 0o755)
    with core_pattern(guarded.paths[row]):
        crash()
        assert not CORE_WAS_TAKEN.exists()
        assert guarded.of(row) == []
        guarded.fill(row)
        crash()
        until(CORE_WAS_TAKEN.exists, "the helper's work")


def test_nfs_server(guarded: Guarded, tmp_path: Path) -> None:
    """Its clients ask again and again, and their tasks wait."""
    row = guarded.lay("served", CONTENT)
    with exported(guarded.root, tmp_path) as seen:
        with contextlib.closing(Pins(directory(guarded.territory.restore_id))) as pins:
            before = pins.counts()["COUNT_TRY_AGAIN"]
            child = Child("cat", seen / "served")
            until(lambda: pins.counts()["COUNT_TRY_AGAIN"] > before + 1, "two refusals")
        assert child.is_running()
        assert guarded.of(row) == []
        guarded.fill(row)
        assert child.finish() == CONTENT.decode()
