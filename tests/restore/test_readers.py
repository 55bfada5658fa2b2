"""Every way to read a placeholder gives the backup's bytes: by name, by mapping, by running, by copying, by another mount."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from active_restore.marker import MARKER
from tests.kernel.rig import INTERCEPTORS, marked, traces
from tests.kernel.tasks import Task, python, read, refused, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.disks import Disk
    from tests.kernel.rig import Rig

MIB = 1 << 20
_CODE = "p, q = sys.argv[1:]\n"
COPIES = {
    "cp": ["cp", "{}", "{out}"],
    "cp sparse": ["cp", "--sparse=always", "{}", "{out}"],
    "cp -a": ["cp", "-a", "{}", "{out}"],
    "dd": ["dd", "if={}", "of={out}", "bs=1M", "status=none"],
    "dd direct": ["dd", "if={}", "of={out}", "bs=1M", "iflag=direct", "status=none"],
    "tar": ["sh", "-c", 'tar --sparse -cf - -C "$(dirname "$1")" "$(basename "$1")" | tar -xOf - > "$2"', "sh", "{}", "{out}"],
    "after fadvise": [
        "python",
        "fd = os.open(p, os.O_RDONLY); os.posix_fadvise(fd, 0, 0, 4); open(q, 'wb').write(os.read(fd, 9 << 20))",
    ],
    "sendfile": [
        "python",
        "s = open(p, 'rb'); d = open(q, 'wb')\nwhile os.sendfile(d.fileno(), s.fileno(), None, 1 << 20): pass",
    ],
    "splice": [
        "python",
        "s = os.open(p, 0); d = os.open(q, os.O_WRONLY | os.O_CREAT); r, w = os.pipe()\n"
        "while n := os.splice(s, w, 65536): os.splice(r, d, n)",
    ],
    "copy_file_range": [
        "python",
        "s = os.open(p, 0); d = os.open(q, os.O_WRONLY | os.O_CREAT)\nwhile os.copy_file_range(s, d, 1 << 20): pass",
    ],
    "mmap": ["python", "import mmap; open(q, 'wb').write(mmap.mmap(os.open(p, 0), 0, prot=mmap.PROT_READ))"],
    "pread at the end": [
        "python",
        "f = os.open(p, 0); n = os.stat(p).st_size; b = os.pread(f, 9 << 20, n // 2)\n"
        "open(q, 'wb').write(os.pread(f, n // 2, 0) + b)",
    ],
    "SEEK_DATA": [
        "python",
        "s = os.open(p, 0); d = os.open(q, os.O_WRONLY | os.O_CREAT); at = 0\n"
        "os.truncate(q, os.stat(p).st_size)\n"
        "while True:\n"
        "    try: at = os.lseek(s, at, os.SEEK_DATA)\n"
        "    except OSError: break\n"
        "    end = os.lseek(s, at, os.SEEK_HOLE)\n"
        "    while at < end: at += os.pwrite(d, os.pread(s, end - at, at), at)",
    ],
}
REFLINK = {"cp reflink": ["cp", "--reflink=always", "{}", "{out}"]}


def copy(how: list[str], path: Path, out: Path) -> Task:
    if how[0] == "python":
        return Task.python(_CODE + how[1], path, out)
    return Task(*(word.format(path, out=out) for word in how))


def test_copies(held_rig: Rig, target: Path, disk: Disk) -> None:
    """Also by those who ask for holes and data first and would skip what looks like a hole."""
    ways = COPIES if disk.kind == "ext4" else COPIES | REFLINK
    for number, _ in enumerate(ways):
        with open(held_rig.tree / f"f{number}", "wb") as file:
            file.write(os.urandom(2 * MIB))
            file.seek(5 * MIB)
            file.write(os.urandom(MIB // 2))
    command = held_rig.hold(target)
    out = disk.mount / f"{target.name}-out"
    out.mkdir()
    tasks = {name: copy(how, target / f"f{number}", out / f"f{number}") for number, (name, how) in enumerate(ways.items())}
    for task in tasks.values():
        with task:
            task.output()
    wrong = [
        name
        for number, name in enumerate(ways)
        if (out / f"f{number}").read_bytes() != (held_rig.tree / f"f{number}").read_bytes()
    ]
    assert not wrong
    held_rig.finish(command, target)
    held_rig.verify(target)
    shutil.rmtree(out)


@pytest.fixture
def programs(held_rig: Rig) -> Rig:
    """A program with an interpreter and a library of its own, and a script that it runs."""
    build = held_rig.place / "build"
    build.mkdir()
    (build / "lib.c").write_text('const char *word(void) { return "from the library"; }\n')
    (build / "main.c").write_text("#include <stdio.h>\nconst char *word(void);\nint main(void) { puts(word()); return 0; }\n")
    run("gcc", "-shared", "-fPIC", "-o", held_rig.tree / "libword.so", build / "lib.c")
    rpath = "-Wl,-rpath,$ORIGIN"
    run("gcc", "-o", held_rig.tree / "program", build / "main.c", "-L", held_rig.tree, "-lword", rpath)
    shutil.copy("/bin/sh", held_rig.tree / "shell")
    return held_rig


def test_programs_run(programs: Rig, target: Path) -> None:
    script = programs.tree / "script"
    script.write_text(f"#!{target}/shell\necho from the script\n")
    script.chmod(0o755)
    command = programs.hold(target)
    for name in ("program", "libword.so", "shell", "script"):
        assert marked(target / name)
    assert run(target / "program") == b"from the library\n"
    assert run(target / "script") == b"from the script\n"
    programs.finish(command, target)
    programs.verify(target)


def test_by_other_mounts(held_rig: Rig, target: Path) -> None:
    """A bind mount in another mount namespace, and an overlay with the target below, as containers have them."""
    for name in ("bound", "below"):
        (held_rig.tree / name).write_bytes(os.urandom(MIB))
    command = held_rig.hold(target)
    for name in ("bind", "merged"):
        (held_rig.place / name).mkdir()
    # In a machine of tests/vm, files that are not on a disk of its own lie in an overlay, which takes no other one on top.
    above = target.with_name(f"{target.name}-above")
    for name in ("upper", "work"):
        (above / name).mkdir(parents=True)
    script = (
        'set -e; mount --bind "$1" "$2/bind"; cat "$2/bind/bound" > "$2/out-bound"; '
        'mount -t overlay overlay -o "lowerdir=$1,upperdir=$3/upper,workdir=$3/work" "$2/merged"; '
        'cat "$2/merged/below" > "$2/out-below"; umount "$2/merged"; umount "$2/bind"'
    )
    run("unshare", "--mount", "sh", "-c", script, "sh", target, held_rig.place, above)
    for name in ("bound", "below"):
        assert (held_rig.place / f"out-{name}").read_bytes() == (held_rig.tree / name).read_bytes()
    held_rig.finish(command, target)
    held_rig.verify(target)


def test_a_thousand_at_once(held_rig: Rig, ext4_target: Path) -> None:
    """Each of many tasks opens all files before it reads the first; some wait for the same file."""
    digests = {}
    for number in range(1000):
        content = os.urandom(3000 + number)
        (held_rig.tree / f"f{number}").write_bytes(content)
        digests[f"f{number}"] = hashlib.md5(content).hexdigest()
    command = held_rig.hold(ext4_target)
    code = (
        "import hashlib, concurrent.futures as c\n"
        "os.chdir(sys.argv[1])\n"
        "first = int(sys.argv[2])\n"
        "names = [f'f{n % 1000}' for n in range(first, first + 250)]\n"
        "with c.ThreadPoolExecutor(125) as pool:\n"
        "    for name, data in zip(names, pool.map(lambda n: open(n, 'rb').read(), names)):\n"
        "        print(name, hashlib.md5(data).hexdigest())"
    )
    tasks = [Task.python(code, ext4_target, str(first)) for first in range(0, 1000, 125)]
    seen = {}
    for task in tasks:
        with task:
            for line in task.output().decode().splitlines():
                name, digest = line.split()
                assert digests[name] == digest
                seen[name] = digest
    assert seen == digests
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_copied_with_its_marker(held_rig: Rig, target: Path) -> None:
    """cp -a takes our xattr along: the copy is a plain file of its own."""
    (held_rig.tree / "file").write_bytes(b"content" * 1000)
    command = held_rig.hold(target)
    run("cp", "-a", target / "file", target / "copy")
    code = "fd = os.open(sys.argv[1], os.O_RDWR)\nos.pwrite(fd, b'mine', 0)\nprint(os.pread(fd, 11, 0))"
    assert python(code, target / "copy") == b"b'mineentcont'\n"
    assert read(target / "file") == b"content" * 1000
    held_rig.finish(command, target)
    assert read(target / "copy") == b"mine" + (b"content" * 1000)[4:]
    # The marker that cp took along may stay on the copy: the guard has learnt before that it is a plain file.
    assert traces(target) in ([], [str(target / "copy")])


def test_marker_on_another_inode(held_rig: Rig, target: Path) -> None:
    """A file that got a placeholder's marker some other way: the handle tells that it is none, and the marker goes."""
    (held_rig.tree / "file").write_bytes(b"content" * 1000)
    command = held_rig.hold(target)
    os.mknod(target / "other", 0o100600)
    os.setxattr(target / "other", MARKER, os.getxattr(target / "file", MARKER))
    python("fd = os.open(sys.argv[1], os.O_RDWR)\nos.pwrite(fd, b'mine', 0)", target / "other")
    assert not marked(target / "other")
    assert marked(target / "file")
    assert read(target / "file") == b"content" * 1000
    assert read(target / "other") == b"mine"
    held_rig.finish(command, target)
    held_rig.assert_clean(target)


@pytest.mark.native
@pytest.mark.parametrize("disk", ["btrfs"], indirect=True)
def test_btrfs_snapshot_shows_no_zeros(held_rig: Rig, disk: Disk, target: Path) -> None:
    """A snapshot of half a restore has placeholders that nobody will fill: an error, never zeros."""
    for name in ("early", "late"):
        (held_rig.tree / name).write_bytes(os.urandom(100_000))
    command = held_rig.hold(target)
    snapshot = disk.mount / f"{target.name}-snapshot"
    run("btrfs", "-q", "subvolume", "snapshot", disk.mount, snapshot)
    inside = snapshot / target.name
    assert refused(inside / "early") == 5
    assert read(target / "late") == (held_rig.tree / "late").read_bytes()
    assert refused(inside / "late") == 5
    held_rig.finish(command, target)
    held_rig.verify(target)
    run("btrfs", "-q", "subvolume", "delete", snapshot)


def test_waiting_threads_hold_up_nobody(held_rig: Rig, ext4_target: Path) -> None:
    """One thread of a process waits for an agent that is dead; its siblings and plain files go on.

    Not with BPF, which stops the process as long as no agent lives (docs/tasks.md): it goes on as a whole.
    """
    (held_rig.tree / "file").write_bytes(b"content")
    command = held_rig.hold(ext4_target)
    command.kill()
    (ext4_target / "plain").write_bytes(b"plain")
    code = (
        "import threading\n"
        "threading.Thread(target=lambda: print(open(sys.argv[1]).read(), flush=True)).start()\n"
        "print(open(sys.argv[2]).read(), flush=True)"
    )
    with Task.python(code, ext4_target / "file", ext4_target / "plain") as task:
        lines = [task.line()] if INTERCEPTORS[0] == "fanotify" else []
        assert lines in ([], [b"plain\n"])
        task.held()
        again = held_rig.resume(ext4_target)
        lines += task.output().splitlines(keepends=True)
        assert sorted(lines) == [b"content\n", b"plain\n"]
    held_rig.finish(again, ext4_target)
    held_rig.assert_clean(ext4_target)


def test_other_calls_that_open(held_rig: Rig, ext4_target: Path) -> None:
    """openat2 and open_by_handle_at, of which it cannot be told what they want, count as writers."""
    for name in ("openat2", "handle"):
        (held_rig.tree / name).write_bytes(os.urandom(50_000))
    command = held_rig.hold(ext4_target)
    code = (
        "sys.path.insert(0, sys.argv[2])\n"
        "from active_restore.linux import files, handles\n"
        "d = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fd = files.open_beneath(d, b'openat2', os.O_RDONLY)\n"
        "assert os.read(fd, 50000) == open(sys.argv[3] + '/openat2', 'rb').read()\n"
        "h = handles.HandleMaker().of_name(os.fsencode(sys.argv[1] + '/handle'))\n"
        "fd = handles.open_handle(d, h, os.O_RDONLY)\n"
        "assert os.read(fd, 50000) == open(sys.argv[3] + '/handle', 'rb').read()"
    )
    subprocess.run(
        [sys.executable, "-c", f"import os, sys\n{code}", ext4_target, held_rig.env["PYTHONPATH"], held_rig.tree],
        check=True,
        timeout=60,
    )
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)
