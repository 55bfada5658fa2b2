"""Suites and checkers that nobody here wrote, on a tree that is half restored, and on the disk when all is over."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.disks import KINDS
from tests.kernel.tasks import Task, read, run
from tests.kernel.waiting import DEADLINE_S
from tests.restore.agents import kill, make
from tests.torture.power import lane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.kernel.rig import Rig

# What opens, writes, copies, maps, locks, packs and imports files; nothing that measures time.
_PYTHON_TESTS = (
    "test_dbm_dumb",
    "test_fcntl",
    "test_file",
    "test_fileinput",
    "test_fileio",
    "test_filecmp",
    "test_genericpath",
    "test_glob",
    "test_mmap",
    "test_pathlib",
    "test_pkgutil",
    "test_posix",
    "test_posixpath",
    "test_shelve",
    "test_shutil",
    "test_tarfile",
    "test_tempfile",
    "test_zipimport",
)
_FSCK = {
    "ext4": ("e2fsck", "-f", "-n"),
    "xfs": ("xfs_repair", "-n"),
    "btrfs": ("btrfs", "check", "--readonly", "--check-data-csum"),
}
_SECONDS = os.environ.get("STRANGERS_SECONDS", "3")


def quietly(*argv: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its good end."""
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=4 * DEADLINE_S)
    assert done.returncode == 0, (argv, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def test_fio_verifies_what_it_wrote_before_the_backup(held_rig: Rig, target: Path) -> None:
    job = ["fio", "--name=data", "--size=6m", "--bs=4k", "--verify=crc32c", "--verify_state_save=0", "--numjobs=2"]
    quietly(*job, "--rw=write", "--do_verify=0", f"--directory={held_rig.tree}")
    command = held_rig.hold(target)
    for engine in ("io_uring", "psync", "mmap"):
        quietly(*job, "--rw=randread", "--verify_only", f"--directory={target}", f"--ioengine={engine}")
    held_rig.finish(command, target)


def test_stress_ng_beside_a_restore(held_rig: Rig, target: Path) -> None:
    """Its file-system stressors verify what they do, in the very directory that is being restored."""
    (held_rig.tree / "many").mkdir()
    for number in range(400):
        (held_rig.tree / "many" / f"f{number}").write_bytes(os.urandom(20_000))
    command = held_rig.hold(target)
    with held_rig.control(target) as client:
        client.limit(2 << 20)
    stressors = (
        "hdd",
        "dentry",
        "rename",
        "link",
        "symlink",
        "fallocate",
        "copy-file",
        "mmap",
        "chmod",
        "utime",
        "xattr",
        "seek",
    )
    work = target / "work"
    work.mkdir()
    options = [word for name in stressors for word in (f"--{name}", "1")]
    sizes = ["--hdd-bytes", "16m", "--fallocate-bytes", "16m", "--copy-file-bytes", "128m", "--seek-size", "8m"]
    quietly("stress-ng", "--temp-path", work, "--verify", "--timeout", f"{_SECONDS}s", *options, *sizes)
    shutil.rmtree(work)
    held_rig.finish(command, target)
    for path in (held_rig.tree / "many").iterdir():
        assert (target / "many" / path.name).read_bytes() == path.read_bytes()
    held_rig.assert_clean(target)


def test_git(held_rig: Rig, ext4_target: Path) -> None:
    repository = held_rig.tree / "repo"
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@localhost", "-c", "safe.directory=*"]
    quietly(*git, "init", "-q", repository)
    for number in range(40):
        (repository / f"file{number}").write_bytes(os.urandom(3000))
        quietly(*git, "add", ".", cwd=repository)
        quietly(*git, "commit", "-q", "-m", f"commit {number}", cwd=repository)
        if number == 20:
            quietly(*git, "gc", "-q", cwd=repository)
    command = held_rig.hold(ext4_target)
    copy = ext4_target / "repo"
    quietly(*git, "fsck", "--full", "--strict", cwd=copy)
    assert quietly(*git, "status", "--porcelain", cwd=copy) == ""
    quietly(*git, "clone", "-q", copy, held_rig.place / "clone")
    quietly(*git, "gc", "-q", "--aggressive", cwd=copy)
    held_rig.finish(command, ext4_target)
    quietly(*git, "fsck", "--full", "--strict", cwd=copy)


def test_python_runs_its_own_tests(held_rig: Rig, ext4_target: Path) -> None:
    """The suite itself, its modules and its data, are placeholders, and what it writes lies beside them."""
    suite = max(Path("/usr/lib").glob("python3.*/test/regrtest.py"), key=lambda path: len(path.parent.name)).parent
    shutil.copytree(suite, held_rig.tree / "test", symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "cjkencodings"))
    command = held_rig.hold(ext4_target)
    work = ext4_target / "work"
    work.mkdir()
    env = ("env", "-i", f"PATH={os.environ['PATH']}", f"PYTHONPATH={ext4_target}", "LANG=C.UTF-8")
    said = quietly(*env, Path("/usr/bin", suite.parent.name), "-B", "-m", "test", "--tempdir", work, *_PYTHON_TESTS)
    assert f"All {len(_PYTHON_TESTS)} tests OK." in said, said[-500:]
    shutil.rmtree(work)
    held_rig.finish(command, ext4_target)
    assert quietly("diff", "-r", "-x", "__pycache__", held_rig.tree / "test", ext4_target / "test") == ""


def test_restic_checks_and_prunes(held_rig: Rig, ext4_target: Path) -> None:
    """A repository is what is restored: restic reads all of it, adds to it, and throws half of it away."""
    repository, data = held_rig.tree / "repo", held_rig.place / "data"
    data.mkdir()
    restic = ["restic", "-q", "--no-cache", "-r"]
    env = {**os.environ, "RESTIC_PASSWORD": "secret"}
    quietly(*restic, repository, "init", env=env)
    for name in ("first", "second"):
        (data / "same").write_bytes(os.urandom(200_000))
        (data / name).write_bytes(os.urandom(2_000_000))
        quietly(*restic, repository, "backup", data, env=env)
    command = held_rig.hold(ext4_target)
    copy = ext4_target / "repo"
    quietly(*restic, copy, "check", "--read-data", env=env)
    (data / "third").write_bytes(os.urandom(500_000))
    quietly(*restic, copy, "backup", data, env=env)
    quietly(*restic, copy, "forget", "--keep-last", "1", "--prune", env=env)
    held_rig.finish(command, ext4_target)
    quietly(*restic, copy, "check", "--read-data", env=env)


@pytest.mark.parametrize("kind", KINDS)
def test_file_system_checkers(held_rig: Rig, kind: str) -> None:
    """A restore that was killed in between, with readers and writers: the disk is as if nothing of the kind had been there."""
    names = make(held_rig.tree, 300, 9_000)
    image, mount = held_rig.place / "image", held_rig.place / "mount"
    mount.mkdir()
    lane.made(kind, image)
    with lane.mounted(kind, [image], [mount]):
        command = held_rig.hold(mount / "t")
        for name in names[::9]:
            assert len(read(mount / "t" / name)) == 9_000
            (mount / "t" / name).write_bytes(b"mine")
        kill(command)
        with Task("rm", mount / "t" / names[1], mount / "t" / names[2]) as task:
            again = held_rig.resume(mount / "t")
            task.output()
        held_rig.finish(again, mount / "t")
    quietly(*_FSCK[kind], image)


def test_sqlite(held_rig: Rig, ext4_target: Path) -> None:
    """A database with a write-ahead log that was never checkpointed: both files are placeholders."""
    path = held_rig.tree / "data.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB UNIQUE)")
        db.executemany("INSERT INTO t VALUES(?,?)", ((number, os.urandom(100)) for number in range(20_000)))
        db.commit()
        copied = held_rig.tree / "copied"
        copied.mkdir()
        for part in ("", "-wal"):
            shutil.copy(f"{path}{part}", copied)
    db.close()
    command = held_rig.hold(ext4_target)
    check = "import sqlite3; db = sqlite3.connect(sys.argv[1]); print(*db.execute('PRAGMA integrity_check').fetchall()[0])"
    count = "print(db.execute('SELECT count(*) FROM t').fetchone()[0]); db.execute('DELETE FROM t WHERE a < 100'); db.commit()"
    program = f"import os, sys; {check}; {count}"
    assert run("python3", "-c", program, ext4_target / "copied/data.sqlite").split() == [b"ok", b"20000"]
    held_rig.finish(command, ext4_target)
