"""The thin system calls: what each must tell apart."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from active_restore.linux import files, handles, tasks
from active_restore.linux.process import is_alive
from active_restore.model import Intent
from tests.kernel.tasks import Task
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.disks import Disk

INTENTS = {
    os.O_RDONLY: Intent.READ,
    os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK: Intent.READ,
    os.O_WRONLY: Intent.WRITE,
    os.O_RDWR: Intent.WRITE,
    3: Intent.WRITE,
    os.O_WRONLY | os.O_APPEND: Intent.WRITE,
    os.O_RDONLY | os.O_TRUNC: Intent.TRUNCATE,
    os.O_RDWR | os.O_TRUNC | os.O_CREAT: Intent.TRUNCATE,
}


@pytest.mark.parametrize("flags", INTENTS, ids=oct)
def test_intent_of_flags(flags: int) -> None:
    assert tasks.intent_of_flags(flags) is INTENTS[flags]


def test_unknown_threads_are_writers() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
        assert tasks.intent(child.pid) is Intent.WRITE
        assert tasks.access_intent(child.pid) is Intent.WRITE
        assert tasks.describe(child.pid).tgid == 0


UNHELD = {
    "plain": ("", False),
    "blocks": ("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))", False),
    "ignores": ("import signal; signal.signal(signal.SIGCONT, signal.SIG_IGN)", False),
    "handles": ("import signal; signal.signal(signal.SIGCONT, lambda *_: None)", True),
    "traced": ("import ctypes; assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0", True),
}


@pytest.mark.parametrize("kind", UNHELD)
def test_whom_no_restart_can_hold(kind: str) -> None:
    code, odd = UNHELD[kind]
    with Task.python(f"{code}\nprint(flush=True)\nsys.stdin.read()") as task:
        assert task.line() == b"\n"
        assert tasks.cannot_restart(task.pid) == odd
        task.close_input()


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert is_alive(child.pid)
        child.kill()
        wait_until(lambda: not is_alive(child.pid), "the zombie is seen as dead")
    assert not is_alive(0)


def test_handles_survive_renames_and_know_new_inodes(disk: Disk) -> None:
    maker = handles.HandleMaker()
    path = disk.mount / "handled"
    path.write_bytes(b"first")
    handle = maker.of_name(os.fsencode(path))
    path.rename(disk.mount / "moved")
    path.write_bytes(b"second")
    mount = os.open(disk.mount, os.O_RDONLY)
    fd = handles.open_handle(mount, handle, os.O_RDONLY)
    assert os.read(fd, 10) == b"first"
    assert maker.of_fd(fd) == handle != maker.of_name(os.fsencode(path))
    os.close(fd)
    (disk.mount / "moved").unlink()
    with pytest.raises(OSError, match="Stale") as refused:
        os.close(handles.open_handle(mount, handle, os.O_PATH))
    assert refused.value.errno == errno.ESTALE
    os.close(mount)
    path.unlink()


@pytest.mark.parametrize("path", [b"../outside", b"link/file", b"/etc/passwd", b"folder/../../outside"])
def test_nothing_leaves_the_directory(tmp_path: Path, path: bytes) -> None:
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (tmp_path / "outside").touch()
    (inside / "link").symlink_to("folder")
    (inside / "folder/file").touch()
    directory = os.open(inside, os.O_RDONLY)
    with pytest.raises(OSError, match=r"cross-device|symbolic") as refused:
        os.close(files.open_beneath(directory, path, os.O_RDONLY))
    assert refused.value.errno in (errno.EXDEV, errno.ELOOP)
    os.close(files.open_beneath(directory, b"folder/file", os.O_RDONLY))
    os.close(directory)
