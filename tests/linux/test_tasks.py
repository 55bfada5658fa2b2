"""What a held thread is about to do is read from /proc, where it may not be asleep yet."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from active_restore.linux import accesses, tasks
from active_restore.model import Intent
from tests.kernel.tasks import Task
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

# Runs, and says so in the second byte, until the first one is set; then it sleeps in read(2).
_BUSY = """
import mmap
told = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 2)
told[1] = 1
while not told[0]:
    pass
os.read(0, 1)
"""


def test_waits_until_it_sleeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it gets no processor for a while, a look at it says only that it runs: it is not taken for a writer."""
    shared = tmp_path / "shared"
    shared.write_bytes(bytes(2))
    with open(shared, "r+b") as file, mmap.mmap(file.fileno(), 2) as told, Task.python(_BUSY, shared) as task:
        wait_until(lambda: told[1], "it runs")

        def pause(_: float) -> None:
            told[0] = 1
            wait_until(lambda: tasks.read_proc(f"/proc/{task.pid}/syscall").split() != [b"running"], "it sleeps")

        monkeypatch.setattr("active_restore.linux.tasks.time.sleep", pause)
        assert accesses.access(task.pid, 0, (0, 1), windows=False) == (Intent.READ, (0, 1))
