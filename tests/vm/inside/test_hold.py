"""Whoever opens a placeholder is held without a trace and gets the content."""

from __future__ import annotations

import errno
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from active_restore.marker import MARKER
from active_restore.model import Gate, Intent
from tests.vm.inside.territory import Child, python, state_of, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.inside.territory import Guarded

CONTENT = b"what the backup holds\n" * 1000


@pytest.mark.ci
def test_reader_gets_content(guarded: Guarded) -> None:
    path = guarded.lay_now("plain", CONTENT)
    assert Child("cat", path).finish() == CONTENT.decode()


@pytest.mark.ci
def test_parked_reader_gets_content(guarded: Guarded) -> None:
    row = guarded.lay("slow", CONTENT)
    child = Child("cat", guarded.paths[row])
    guarded.parked(child.pid)
    guarded.fill(row)
    assert child.finish() == CONTENT.decode()
    assert len(guarded.of(row)) == 1


def test_fault_tells_who_wants_what(guarded: Guarded) -> None:
    row = guarded.lay("told", CONTENT)
    child = python("import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR))", guarded.paths[row])
    guarded.faulted(row)
    fault = guarded.of(row)[0]
    assert (fault.intent, fault.task.tid, fault.task.tgid, fault.range) == (Intent.WRITE, child.pid, child.pid, None)
    assert fault.task.comm.startswith("python")
    guarded.fill(row)
    assert child.finish() == ""


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_refusal_is_an_errno(guarded: Guarded, code: int) -> None:
    row = guarded.lay(f"refused{code}", CONTENT)
    attempt = "import sys\ntry: open(sys.argv[1])\nexcept OSError as error: print(error.errno)"
    child = python(attempt, guarded.paths[row])
    guarded.parked(child.pid)
    # It may be parked before anybody was told.
    guarded.faulted(row)
    guarded.interceptor.refuse(row, code, guarded.of(row))
    assert child.finish() == f"{code}\n"
    # The placeholder stays guarded: the next one waits again.
    again = python(attempt, guarded.paths[row])
    guarded.faulted(row, 2)
    guarded.fill(row)
    assert again.finish() == ""


@pytest.mark.ci
def test_readers_pass_before_writers(guarded: Guarded) -> None:
    row = guarded.lay("half", CONTENT)
    reader = python("import sys; print(len(open(sys.argv[1], 'rb').read()))", guarded.paths[row])
    writer = python("import sys; open(sys.argv[1], 'r+b').write(b'mine')", guarded.paths[row])
    guarded.faulted(row, 2)
    passage = guarded.interceptor.passage()
    with open(os.open(guarded.paths[row].name, os.O_WRONLY, dir_fd=passage), "wb") as file:
        file.write(CONTENT)
    readers = [fault for fault in guarded.of(row) if fault.intent is Intent.READ]
    guarded.interceptor.release(row, Gate.READ, readers)
    assert reader.finish() == f"{len(CONTENT)}\n"
    assert writer.is_running()
    guarded.fill(row)
    assert writer.finish() == ""
    assert guarded.paths[row].read_bytes()[:4] == b"mine"


@pytest.mark.ci("6.12")
def test_truncate_by_path_waits(guarded: Guarded) -> None:
    row = guarded.lay("cut", CONTENT)
    child = python("import os, sys; os.truncate(sys.argv[1], 10)", guarded.paths[row])
    guarded.faulted(row)
    # It keeps the beginning.
    assert guarded.of(row)[0].intent is Intent.WRITE
    assert guarded.paths[row].stat().st_size == len(CONTENT)
    guarded.fill(row)
    assert child.finish() == ""
    assert guarded.paths[row].read_bytes() == CONTENT[:10]


@pytest.mark.ci
def test_many_threads_of_one_process(guarded: Guarded) -> None:
    row = guarded.lay("shared", CONTENT)
    code = """
        import sys, threading
        def read(): sizes.append(len(open(sys.argv[1], "rb").read()))
        sizes = []
        threads = [threading.Thread(target=read) for _ in range(20)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(sizes.count(int(sys.argv[2])))
    """
    child = python(code, guarded.paths[row], str(len(CONTENT)))
    guarded.faulted(row, 20)
    guarded.fill(row)
    assert child.finish() == "20\n"


@pytest.mark.ci
def test_sibling_threads_see_no_interruption(guarded: Guarded) -> None:
    """The raw system calls, because Python repeats interrupted ones by itself."""
    row = guarded.lay("sibling", CONTENT)
    code = """
        import ctypes, os, sys, threading
        libc = ctypes.CDLL(None, use_errno=True)
        epoll, seen = libc.epoll_create1(0), []
        def wait():
            buffer = ctypes.create_string_buffer(64)
            print("waiting", flush=True)
            seen.append((libc.epoll_wait(epoll, buffer, 1, 30000), ctypes.get_errno()))
        sibling = threading.Thread(target=wait)
        sibling.start()
        print(len(open(sys.argv[1], "rb").read()), flush=True)
        read, write = os.pipe()
        event = (ctypes.c_uint32 * 3)(1, 0, 0)
        libc.epoll_ctl(epoll, 1, read, event)
        os.write(write, b"x")
        sibling.join()
        print(seen[0][0])
    """
    child = python(code, guarded.paths[row])
    guarded.faulted(row)
    guarded.parked(child.pid)
    guarded.fill(row)
    assert child.finish().splitlines() == ["waiting", str(len(CONTENT)), "1"]


@pytest.mark.ci
def test_parent_sees_nothing_but_the_end(guarded: Guarded) -> None:
    row = guarded.lay("parent", CONTENT)
    code = """
        import os, sys
        child = os.fork()
        if not child:
            open(sys.argv[1]).read()
            os._exit(7)
        print(child, flush=True)
        statuses = []
        while not statuses or not os.WIFEXITED(statuses[-1]):
            statuses.append(os.waitpid(child, os.WUNTRACED | os.WCONTINUED)[1])
        print([hex(status) for status in statuses])
    """
    child = python(code, guarded.paths[row])
    guarded.faulted(row)
    guarded.parked(guarded.of(row)[0].task.tid)
    guarded.fill(row)
    assert child.finish().splitlines()[1] == "['0x700']"


@pytest.mark.ci("6.12")
def test_interactive_shell_never_says_stopped(guarded: Guarded, tmp_path: Path) -> None:
    import pexpect

    row = guarded.lay("shell", b"the content\n")
    shell = pexpect.spawn("bash", ["--norc", "-i"], encoding="utf-8", timeout=60, env={"PS1": "$ ", "PATH": os.environ["PATH"]})
    shell.expect_exact("$ ")
    shell.sendline(f"cat {guarded.paths[row]}; jobs; echo 'fin'ished")
    guarded.faulted(row)
    guarded.parked(guarded.of(row)[0].task.tid)
    guarded.fill(row)
    shell.expect_exact("finished")
    said = shell.before or ""
    assert "the content" in said
    assert "topped" not in said
    shell.sendline("exit")
    shell.expect(pexpect.EOF)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP])
def test_signal_ends_a_waiting_task(guarded: Guarded, number: signal.Signals) -> None:
    row = guarded.lay(f"killed{number}", CONTENT)
    child = Child("cat", guarded.paths[row])
    guarded.parked(child.pid)
    os.kill(child.pid, number)
    assert child.status() == -number
    until(lambda: not guarded.waiting(), "the end of the wait")


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGUSR1, marks=pytest.mark.ci), signal.SIGTERM, signal.SIGINT, signal.SIGALRM]
)
def test_signal_handler_runs_while_waiting(guarded: Guarded, number: signal.Signals) -> None:
    row = guarded.lay(f"handled{number}", CONTENT)
    code = """
        import os, signal, sys
        signal.signal(int(sys.argv[2]), lambda *_: os.write(1, b"handled\\n"))
        print(len(open(sys.argv[1], "rb").read()))
    """
    child = python(code, guarded.paths[row], str(int(number)))
    guarded.parked(child.pid)
    os.kill(child.pid, number)
    # The call is restarted after the handler, and the task is held again.
    guarded.faulted(row, 2)
    guarded.fill(row)
    assert sorted(child.finish().splitlines()) == [str(len(CONTENT)), "handled"]


@pytest.mark.ci("6.12")
def test_users_stop_is_honoured(guarded: Guarded) -> None:
    row = guarded.lay("stopped", CONTENT)
    child = Child("cat", guarded.paths[row])
    guarded.parked(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: state_of(child.pid) == "T", "the user's stop")
    guarded.fill(row)
    assert state_of(child.pid) == "T"
    os.kill(child.pid, signal.SIGCONT)
    assert child.finish() == CONTENT.decode()


@pytest.mark.ci("6.12")
def test_exec_of_a_placeholder(guarded: Guarded) -> None:
    with open("/bin/echo", "rb") as program:
        path = guarded.lay_now("program", program.read(), 0o755)
    assert Child(path, "ran").finish() == "ran\n"


def test_script_of_a_placeholder(guarded: Guarded) -> None:
    path = guarded.lay_now("script", b'#!/bin/sh\necho "$1"\n', 0o755)
    assert Child(path, "ran").finish() == "ran\n"


@pytest.mark.ci("6.12")
def test_vfork_child_and_its_parent(guarded: Guarded) -> None:
    """posix_spawn suspends the parent until the child has started the placeholder."""
    with open("/bin/true", "rb") as program:
        path = guarded.lay_now("spawned", program.read(), 0o755)
    child = python("import os, sys; print(os.waitpid(os.posix_spawn(sys.argv[1], ['x'], {}), 0)[1])", path)
    assert child.finish() == "0\n"


def test_init_of_a_container(guarded: Guarded) -> None:
    path = guarded.lay_now("init", CONTENT)
    assert Child("unshare", "--fork", "--pid", "--mount-proc", "cat", path).finish() == CONTENT.decode()


@pytest.mark.ci("6.12")
def test_frozen_cgroup(guarded: Guarded) -> None:
    group = "/sys/fs/cgroup/active-restore-test"
    os.makedirs(group, exist_ok=True)
    row = guarded.lay("frozen", CONTENT)
    child = Child("cat", guarded.paths[row])
    guarded.parked(child.pid)
    with open(f"{group}/cgroup.procs", "w") as procs:
        procs.write(str(child.pid))
    with open(f"{group}/cgroup.freeze", "w") as freeze:
        freeze.write("1")
    guarded.fill(row)
    with open(f"{group}/cgroup.freeze", "w") as freeze:
        freeze.write("0")
    assert child.finish() == CONTENT.decode()
    os.rmdir(group)


def test_seccomp_locked_task(guarded: Guarded) -> None:
    """Strict mode would not allow open; a filter that allows everything shows that restarts pass the filter again."""
    path = guarded.lay_now("seccomp", CONTENT)
    code = """
        import ctypes, struct, sys
        libc = ctypes.CDLL(None)
        allow = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
        program = ctypes.create_string_buffer(struct.pack("=H6xQ", 1, ctypes.addressof(allow)))
        assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
        print(len(open(sys.argv[1], "rb").read()))
    """
    assert python(code, path).finish() == f"{len(CONTENT)}\n"


@pytest.mark.ci("6.12")
def test_new_file_under_a_reused_number(guarded: Guarded) -> None:
    """The bit of a deleted placeholder is still set when its inode number is given to a new file."""
    row = guarded.lay("deleted", CONTENT)
    inode = guarded.paths[row].stat().st_ino
    guarded.paths[row].unlink()
    code = "import os, sys; print(os.stat(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_RDWR)).st_ino)"
    made = [int(python(code, guarded.root / f"new{index}").finish()) for index in range(3)]
    assert inode in made
    again = python("import sys; print(open(sys.argv[1]).read())", guarded.root / f"new{made.index(inode)}")
    assert again.finish() == "\n"


def test_nobody_is_held_at_the_passage(guarded: Guarded) -> None:
    row = guarded.lay("passage", CONTENT)
    name, passage = guarded.paths[row].name, guarded.interceptor.passage()
    fd = os.open(name, os.O_RDWR, dir_fd=passage)
    assert os.read(fd, 100_000) == bytes(len(CONTENT))
    os.close(fd)
    assert guarded.of(row) == []


def test_agent_never_waits_for_itself(guarded: Guarded) -> None:
    """It is refused, and told of it, as by fanotify."""
    row = guarded.lay("itself", CONTENT)
    with pytest.raises(BlockingIOError):
        guarded.paths[row].open()
    guarded.faulted(row)
    assert guarded.of(row)[0].task.tid == threading.get_native_id()
    guarded.interceptor.refuse(row, errno.EAGAIN, guarded.of(row))


@pytest.mark.ci("6.12")
def test_settled_in_the_background(guarded: Guarded) -> None:
    """Nobody waited for these; their gates are opened together."""
    rows = [guarded.lay(f"settled{number}", CONTENT) for number in range(200)]
    for row in rows[:150]:
        os.removexattr(guarded.paths[row], MARKER)
        guarded.contents.pop(row)
    guarded.interceptor.settled(rows[:150])
    assert Child("wc", "-c", *(guarded.paths[row] for row in rows[:150])).finish().endswith(" total\n")
    assert guarded.faults == []
    child = Child("cat", guarded.paths[rows[150]])
    guarded.faulted(rows[150])
    guarded.fill(rows[150])
    assert child.finish() == CONTENT.decode()


@pytest.mark.timeout(900)
def test_five_thousand_wait_at_once(guarded: Guarded) -> None:
    row = guarded.lay("crowd", CONTENT)
    code = """
        import sys, threading
        threading.stack_size(65536)
        def read():
            with open(sys.argv[1], "rb") as file: sizes.append(len(file.read()))
        sizes = []
        threads = [threading.Thread(target=read) for _ in range(5000)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(sizes.count(int(sys.argv[2])))
    """
    child = python(code, guarded.paths[row], str(len(CONTENT)))
    # Not by the map first: to read it without a pause takes the processor from who serves.
    until(lambda: len(guarded.faults) >= 5000, "5,000 faults", seconds=400)
    until(lambda: len(guarded.waiting()) == 5000, "5,000 waits", seconds=200)
    guarded.fill(row)
    assert child.finish(seconds=240) == "5000\n"
