"""What ``intercept.base.Interceptor`` promises of files by range, where an interceptor has them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from active_restore.marker import MARKER
from active_restore.model import TO_THE_END
from tests.cli.machine import ROOT
from tests.intercept.test_contract import Agent, begin, disarm, name
from tests.kernel.tasks import Task, python
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.disks import Disk
    from tests.kernel.rig import Rig

__all__ = ["begin", "name"]
PAGE = 4096
PAGES = 64
SIZE = PAGES * PAGE


@pytest.fixture
def root(ext4: Disk, tmp_path: Path) -> Path:
    place = ext4.mount / f"ranges-{tmp_path.name}"
    place.mkdir()
    for number in range(8):
        (place / f"f{number}").write_bytes(b"x" * SIZE)
    (place / "plain").write_bytes(b"plain")
    return place


@pytest.fixture
def agent(begin: Callable[[str], Agent]) -> Agent:
    agent = begin("arm")
    agent.order("hold", 3, SIZE)
    return agent


# What a task does with an open descriptor ``fd`` of the file ``p``: intent and range of the fault.
ACCESSES = {
    "pread": ("os.pread(fd, 100, 5000)", "read", [PAGE, PAGE]),
    "read": ("os.lseek(fd, 8000, 0); os.read(fd, 9000)", "read", [PAGE, 4 * PAGE]),
    "preadv": ("os.preadv(fd, [bytearray(5), bytearray(PAGE)], PAGE)", "read", [PAGE, 2 * PAGE]),
    "mmap": ("mmap.mmap(fd, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=PAGE)", "read", [PAGE, TO_THE_END]),
    "mmap to write": ("mmap.mmap(fd, PAGE, offset=PAGE)", "map", [0, TO_THE_END]),
    "sendfile": ("os.sendfile(os.memfd_create('x'), fd, 5000, 10)", "read", [PAGE, PAGE]),
    "splice": ("os.splice(fd, os.pipe()[1], 10, offset_src=5000)", "read", [PAGE, PAGE]),
    "copy_file_range": ("os.copy_file_range(fd, os.open(p + 'x', os.O_CREAT | os.O_WRONLY), 10, 5000)", "read", [PAGE, PAGE]),
    "pwrite": ("os.pwrite(fd, b'n', 5000)", "change", [PAGE, PAGE]),
    "pwritev": ("os.pwritev(fd, [b'n', b'n'], 5000)", "change", [PAGE, PAGE]),
    "sendfile to it": ("os.sendfile(fd, os.open('/bin/true', 0), 0, 10)", "change", [0, PAGE]),
    "splice to it": ("r, w = os.pipe(); os.write(w, b'n'); os.splice(r, fd, 1, offset_dst=5000)", "change", [PAGE, PAGE]),
    "copy_file_range to it": ("os.copy_file_range(os.open(q, 0), fd, 3, 0, 5000)", "write", [PAGE, PAGE]),
    "ftruncate": ("os.ftruncate(fd, 5000)", "write", [PAGE, PAGE]),
    "truncate": ("os.truncate(p, 5000)", "write", [PAGE, PAGE]),
    "fallocate": ("os.posix_fallocate(fd, PAGE, PAGE)", "write", [PAGE, PAGE]),
    "openat2, pread": ("os.pread(rings.open2(p, os.O_RDWR), 100, 5000)", "read", [PAGE, PAGE]),
    "aio": ("rings.Aio().read(fd, 100, 5000)", "access", [PAGE, PAGE]),
    "io_uring": ("rings.Ring('inline').read(fd, 100, 5000)", "read", [PAGE, PAGE]),
    # Which ext4 leaves to a worker.
    "buffered write by io_uring": ("rings.Ring('inline').write(fd, b'n', 5000)", "change", [PAGE, PAGE]),
    "io_uring's worker": ("rings.Ring('worker').read(fd, 100, 5000)", "read", [PAGE, PAGE]),
    "io_uring's kernel thread": ("rings.Ring('sqpoll').read(fd, 100, 5000)", "read", [PAGE, PAGE]),
    "io_uring's kernel thread writes": ("rings.Ring('sqpoll').write(fd, b'n', 5000)", "change", [PAGE, PAGE]),
    "fallocate by io_uring": ("rings.Ring('inline').punch(fd, PAGE, PAGE)", "ring", [PAGE, PAGE]),
}
_READERS = ("Ring('inline')", "Ring('worker')", "Ring('sqpoll')")
_RINGS = f"PAGE = 4096\nsys.path.insert(0, {str(ROOT / 'tests' / 'ranges')!r})\nimport rings\n"
_OPEN = f"{_RINGS}import mmap\np, q = sys.argv[1:3]\nfd = os.open(p, os.O_RDWR)\nprint(flush=True)\n"


@pytest.mark.parametrize("how", ACCESSES, ids=list(ACCESSES))
def test_open_goes_on_and_access_faults(agent: Agent, root: Path, how: str) -> None:
    code, intent, span = ACCESSES[how]
    with Task.python(_OPEN + code, root / "f3", root / "plain") as task:
        assert task.line() == b"\n"
        fault = agent.until("fault")
        assert (fault["row"], fault["pid"], fault["intent"], fault["range"]) == (3, task.pid, intent, span)
        task.held()
        agent.order("release", 3, "NONE")
        task.output()
    # It was for that task alone.
    with Task.python("os.pread(os.open(sys.argv[1], 0), 1, 0)", root / "f3") as task:
        agent.until("fault")
        agent.order("release", 3, "NONE")
        task.output()
    disarm(agent, root)


def test_pages_that_are_there_hold_nobody_but_the_first_writer(agent: Agent, root: Path) -> None:
    agent.order("present", 3, 1, 3)
    write = "os.pwrite(os.open(sys.argv[1], os.O_WRONLY), b'n', 5000)"
    assert python("print(os.pread(os.open(sys.argv[1], 0), 2, 8000))", root / "f3").strip() == b"b'xx'"
    with Task.python(write, root / "f3") as task:
        assert agent.until("fault")["intent"] == "change"
        agent.order("touch", 3)
        agent.order("release", 3, "NONE")
        task.output()
    python(write, root / "f3")
    with Task.python("os.pread(os.open(sys.argv[1], 0), 5000, 8000)", root / "f3") as task:
        assert agent.until("fault")["range"] == [PAGE, 3 * PAGE]
        agent.order("refuse", 3, 5)
        assert task.finish()[0] != 0
    disarm(agent, root)


def test_reads_that_might_be_writes(agent: Agent, root: Path) -> None:
    """Of pages that are there: they pass where nobody has the file open for writing, else who is asked knows more."""
    agent.order("present", 3, 1, 3)
    read = _RINGS + "print(rings.{}.read(os.open(sys.argv[1], {}), 2, 8000))"
    for flags, rings in (("os.O_RDONLY", ("Aio()", *_READERS)), ("os.O_RDWR", _READERS)):
        for ring in rings:
            assert python(read.format(ring, flags), root / "f3").strip() == b"b'xx'", ring
    with Task.python(read.format("Aio()", "os.O_RDWR"), root / "f3") as task:
        assert agent.until("fault")["intent"] == "access"
        agent.order("release", 3, "NONE")
        task.output()
    agent.order("touch", 3)
    assert python(read.format("Aio()", "os.O_RDWR"), root / "f3").strip() == b"b'xx'"
    with Task.python(f"{_RINGS}rings.Ring('worker').punch(os.open(sys.argv[1], os.O_RDWR), PAGE, PAGE)", root / "f3") as task:
        assert agent.until("fault")["intent"] == "ring"
        agent.order("release", 3, "NONE")
        task.output()
    disarm(agent, root)


@pytest.mark.parametrize("victims", [["ar-keeper"], ["ar-standby", "ar-keeper"]], ids="-".join)
def test_whoever_comes_after_a_keeper_knows_what_was_wanted(agent: Agent, rig: Rig, root: Path, victims: list[str]) -> None:
    with Task.python("os.pread(os.open(sys.argv[1], 0), 100, 5000)", root / "f3") as task, Task("cat", root / "f5") as reader:
        before = {fault["row"]: fault for fault in (agent.until("fault"), agent.until("fault"))}
        for victim in victims:
            rig.kill(victim)
        assert {fault["row"]: fault for fault in (agent.until("fault"), agent.until("fault"))} == before
        assert before[3]["range"] == [PAGE, PAGE]
        assert before[3]["handle"]
        assert before[5]["intent"] == "read"
        agent.order("release", 3, "NONE")
        task.output()
        os.removexattr(root / "f5", MARKER)
        agent.order("release", 5)
        reader.output()
    wait_until(rig.is_guarded, "both are there again")
    disarm(agent, root)


def test_exec_and_truncating_opens_are_faults_of_the_file(agent: Agent, root: Path) -> None:
    for code, intent in (
        ("os.open(p, os.O_WRONLY | os.O_TRUNC)", "truncate"),
        (f"{_RINGS}rings.open2(p, os.O_WRONLY | os.O_TRUNC)", "truncate"),
        ("os.chmod(p, 0o755)\nos.execv(p, ['x'])", "whole"),
    ):
        with Task.python(f"p = sys.argv[1]\n{code}", root / "f3") as task:
            fault = agent.until("fault")
            assert (fault["intent"], fault["range"]) == (intent, None)
            agent.order("refuse", 3, 5)
            assert task.finish()[0] != 0
    disarm(agent, root)


def test_next_agent_finds_what_is_there(agent: Agent, begin: Callable[[str], Agent], root: Path) -> None:
    agent.order("present", 3, 0, 2)
    with Task.python("os.pread(os.open(sys.argv[1], 0), 10, 8192)", root / "f3") as task:
        agent.until("fault")
        agent.kill()
        # Nobody is there, and it goes on.
        assert python("print(os.pread(os.open(sys.argv[1], 0), 2, 8000))", root / "f3").strip() == b"b'xx'"
        task.held()
        second = begin("adopt")
        assert second.until("adopted")["found"]
        assert second.until("fault")["range"] == [2 * PAGE, PAGE]
        second.order("hold", 3, SIZE)
        second.order("release", 3, "NONE")
        task.output()
    disarm(second, root)
