"""Who might wait for whom in a circle: io_uring, frozen and loop-mounted file systems, full pipes, thousands at once."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.tasks import Task, python, read, run
from tests.kernel.waiting import DEADLINE_S, wait_until
from tests.restore.agents import kill, make

if TYPE_CHECKING:
    from tests.kernel.disks import Disk
    from tests.kernel.rig import Rig

MIB = 1 << 20
_PROCESSES, _THREADS = 10, 500
# Reads a file by an idmapped mount: open_tree(2) and mount_setattr(2), with the user namespace of a child.
_MAPPED = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
made, over = os.pipe(), os.pipe()
child = os.fork()
if not child:
    os.close(over[1])
    check(libc.unshare(0x10000000))
    os.write(made[1], b'x')
    os.read(over[0], 1)
    os._exit(0)
os.read(made[0], 1)
for kind in ('uid_map', 'gid_map'):
    open(f'/proc/{child}/{kind}', 'w').write('0 100000 65536')
owners = os.open(f'/proc/{child}/ns/user', os.O_RDONLY)
tree = check(libc.syscall(428, -100, os.fsencode(sys.argv[1]), 1 | os.O_CLOEXEC))
check(libc.syscall(442, tree, b'', 0x1000, struct.pack('=QQQQ', 0x100000, 0, 0, owners), 32))
os.close(over[1])
os.waitpid(child, 0)
fd = os.open(sys.argv[2], os.O_RDONLY, dir_fd=tree)
assert os.fstat(fd).st_uid == 100000
while part := os.read(fd, 65536):
    os.write(1, part)
"""


@pytest.fixture(scope="module")
def uring_cat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cat that opens and reads by io_uring alone."""
    program = tmp_path_factory.mktemp("uring") / "uring_cat"
    source = Path(__file__).with_name("uring_cat.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
    return program


@pytest.mark.parametrize("way", ["inline", "async", "sqpoll"])
def test_io_uring_readers(held_rig: Rig, ext4_target: Path, uring_cat: Path, way: str) -> None:
    """With an agent, and without one until the next comes: workers and the kernel's own thread are held like any other."""
    first, second, *_ = make(held_rig.tree, 2, 200_000)
    command = held_rig.hold(ext4_target)
    assert run(uring_cat, way, ext4_target / first) == (held_rig.tree / first).read_bytes()
    kill(command)
    with Task(uring_cat, way, ext4_target / second) as task:
        again = held_rig.resume(ext4_target)
        assert task.output() == (held_rig.tree / second).read_bytes()
    held_rig.finish(again, ext4_target)
    held_rig.verify(ext4_target)


def test_five_thousand_wait_at_once(held_rig: Rig, ext4_target: Path) -> None:
    """No agent lives; five thousand threads wait for a hundred files; the next agent serves them all."""
    names = make(held_rig.tree, 100, 5_000)
    kill(held_rig.hold(ext4_target))
    sums = [hashlib.md5((held_rig.tree / name).read_bytes()).hexdigest() for name in names]
    code = (
        "import hashlib, threading\n"
        "threading.stack_size(65536)\n"
        "names, sums, right = sys.argv[3].split(), sys.argv[4].split(), []\n"
        "def one(at):\n"
        "    with open(os.path.join(sys.argv[1], names[at]), 'rb') as file:\n"
        "        right.append(hashlib.md5(file.read()).hexdigest() == sums[at])\n"
        "threads = [threading.Thread(target=one, args=(n % len(names),)) for n in range(int(sys.argv[2]))]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print(right.count(True))"
    )
    arguments = (ext4_target, str(_THREADS), " ".join(names), " ".join(sums))
    tasks = [Task.python(code, *arguments) for _ in range(_PROCESSES)]
    try:
        wait_until(lambda: sum(waiting(task.pid) for task in tasks) == _PROCESSES * _THREADS, "all are held", 2 * DEADLINE_S)
        again = held_rig.resume(ext4_target)
        assert [int(task.output()) for task in tasks] == [_THREADS] * _PROCESSES
    finally:
        for task in tasks:
            with task:
                pass
    held_rig.finish(again, ext4_target)
    held_rig.verify(ext4_target)


def waiting(pid: int) -> int:
    """How many threads of a process are in uninterruptible sleep."""
    stats = [(thread / "stat").read_bytes() for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(stat.rpartition(b")")[2].split()[0] == b"D" for stat in stats)


def test_frozen_file_system(held_rig: Rig, ext4: Disk, ext4_target: Path) -> None:
    """A snapshot tool freezes the disk while files are filled: everybody waits, and goes on when it thaws."""
    first, *_ = make(held_rig.tree, 4, MIB)
    command = held_rig.hold(ext4_target)
    subprocess.run(["fsfreeze", "--freeze", ext4.mount], check=True)
    try:
        with Task("cat", ext4_target / first) as task:
            task.held()
            with held_rig.control(ext4_target) as client:
                assert [wait.path.decode() for wait in client.status().waiting] == [first]
                client.limit(0)
            subprocess.run(["fsfreeze", "--unfreeze", ext4.mount], check=True)
            assert task.output() == (held_rig.tree / first).read_bytes()
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", ext4.mount], check=False, capture_output=True)
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_loop_mount_of_a_placeholder(held_rig: Rig, ext4_target: Path) -> None:
    image, mount = held_rig.tree / "image", held_rig.place / "mounted"
    content = held_rig.place / "content"
    content.mkdir()
    (content / "file").write_bytes(os.urandom(MIB))
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", content, image, "20m"], check=True)
    command = held_rig.hold(ext4_target)
    mount.mkdir()
    run("mount", "-o", "loop,ro", ext4_target / "image", mount)
    try:
        assert read(mount / "file") == (content / "file").read_bytes()
    finally:
        subprocess.run(["umount", mount], check=True)
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_bind_mount_in_a_container(held_rig: Rig, ext4_target: Path) -> None:
    """What a container sees by a bind mount in a namespace of its own, also one with other owners, is held as well."""
    first, second, third, *_ = make(held_rig.tree)
    command = held_rig.hold(ext4_target)
    place = held_rig.place / "inside"
    place.mkdir()
    script = 'mount --bind "$0" "$1" && exec cat "$1/$2"'
    assert run("unshare", "-m", "sh", "-c", script, ext4_target, place, first) == (held_rig.tree / first).read_bytes()
    # Without privileges, and with owners that are others there: what Podman and systemd-nspawn do for users.
    place.chmod(0o755)
    ids = ("--user", "--map-root-user", "--mount")
    assert run("unshare", *ids, "sh", "-c", script, ext4_target, place, second) == (held_rig.tree / second).read_bytes()
    assert python(_MAPPED, ext4_target, third) == (held_rig.tree / third).read_bytes()
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_nobody_reads_what_the_agent_says(held_rig: Rig, ext4: Disk, ext4_target: Path) -> None:
    """Its output is a pipe that is full, its state and its log lie on the very disk that it guards: faults are served."""
    names = make(held_rig.tree, 1500, 2_000)
    held_rig.env["ACTIVE_RESTORE_STATE"] = str(ext4.mount / "state")
    argv = held_rig.argv("restore", held_rig.source, ext4_target, "--limit", "1", "--json")
    with open(ext4.mount / "log", "wb") as log:
        agent = subprocess.Popen(argv, env=held_rig.env, stdout=subprocess.PIPE, stderr=log)
    assert agent.stdout is not None
    with agent.stdout as said:
        while b'"ready"' not in said.readline():
            pass
        code = "for name in sys.stdin.read().split(): print(len(open(os.path.join(sys.argv[1], name), 'rb').read()))"
        with Task.python(code, ext4_target) as task:
            task.say("\n".join(names).encode())
            task.close_input()
            assert task.output().split() == [b"2000"] * len(names)
        held_rig.hurry(ext4_target)
        while said.readline():
            pass
    assert agent.wait(DEADLINE_S) == 0
    assert not os.listdir(ext4.mount / "state")
    assert (ext4.mount / "log").read_bytes() == b""
