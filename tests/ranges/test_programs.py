"""Real programs on files of which most is missing: PostgreSQL, SQLite with WAL and mmap, qemu-img, git."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.postgres import DIRECTORY, Cluster
from tests.kernel.disks import mounted
from tests.kernel.rig import INTERCEPTORS, MIB, marked
from tests.kernel.tasks import python
from tests.ranges.test_fsx import from_restic
from tests.ranges.test_reading import paused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.rig import Rig

# A machine with BPF has an emulated processor.
_SMALLER = 4 if INTERCEPTORS[0] == "bpf" else 1
_ROWS = 300_000 // _SMALLER
_WORDS = 40_000 // _SMALLER


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users can come to."""
    place = Path(tempfile.mkdtemp(prefix="active-restore-ranges.", dir="/var/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def _make_cluster(place: Path) -> None:
    place.mkdir()
    cluster = Cluster(place, place / "socket")
    cluster.make_empty()
    with cluster.running("-c fsync=off"):
        for table in ("asked", "other"):
            cluster.ask(f"CREATE TABLE {table} AS SELECT g AS id, md5(g::text) AS word FROM generate_series(1, {_ROWS}) g")
            cluster.ask(f"ALTER TABLE {table} ADD PRIMARY KEY (id)")
        cluster.ask("VACUUM FREEZE")
        cluster.ask("CHECKPOINT")


def _present(rig: Rig, target: Path) -> tuple[int, int]:
    with rig.control(target) as client:
        ranges = client.status().ranges
    return ranges.bytes_present, ranges.bytes_total


def test_postgresql_answers_on_one_table_while_the_rest_is_missing(rig: Rig, public: Path) -> None:
    _make_cluster(public / "made")
    # Not shutil.move: to another file system it takes no owners along.
    _run("mv", public / "made" / DIRECTORY, rig.tree / DIRECTORY)
    from_restic(rig)
    with mounted("ext4", public / "disk") as disk:
        target = disk.mount / "target"
        command = rig.restore(target, "--ranges", f"/{DIRECTORY}/base", "--range-threshold", "1MiB", "--limit", "1")
        paused(rig, target)
        cluster = Cluster(target, public / "socket")
        # Its data directory is reached by its own user.
        disk.mount.chmod(0o755)
        target.chmod(0o755)
        with cluster.running():
            other = target / DIRECTORY / cluster.ask("SELECT pg_relation_filepath('other')")
            assert cluster.ask("SELECT word FROM asked WHERE id = 4711") == hashlib.md5(b"4711").hexdigest()
            assert marked(other)
            there, total = _present(rig, target)
            assert there < total // 2
            cluster.ask("UPDATE other SET word = 'changed' WHERE id = 77")
            cluster.ask("CHECKPOINT")
            # All of it, also what nobody has asked for: it is read while it is restored.
            rig.hurry(target)
            assert cluster.ask("SELECT count(*), sum(length(word)) FROM other") == f"{_ROWS}|{32 * _ROWS - 25}"
            assert cluster.ask("SELECT count(DISTINCT word) FROM asked") == str(_ROWS)
        code, errors = command.end()
        assert code == 0, errors
        with cluster.running():
            assert cluster.ask("SELECT word FROM other WHERE id = 77") == "changed"
        rig.assert_clean(target)


def _make_database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE word(id INTEGER PRIMARY KEY, word BLOB)")
        db.executemany("INSERT INTO word VALUES(?, randomblob(400))", ((n,) for n in range(_WORDS)))
    db.close()


_USE_DATABASE = f"""
import sqlite3
last = {_WORDS}
db = sqlite3.connect(sys.argv[1])
print(db.execute('PRAGMA journal_mode=WAL').fetchone(), db.execute('PRAGMA mmap_size=%s' % sys.argv[2]).fetchone())
print(len(db.execute('SELECT word FROM word WHERE id = %d' % (last * 3 // 4)).fetchone()[0]))
for number in range(0, last, 400):
    db.execute('UPDATE word SET word = ? WHERE id = ?', (b'new', number))
db.execute('DELETE FROM word WHERE id % 1000 = 1')
db.commit()
print(db.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone()[0])
print(db.execute('SELECT count(*), sum(length(word)) FROM word').fetchone())
print(db.execute('PRAGMA integrity_check').fetchone()[0])
"""


def test_programs(rig: Rig, target: Path) -> None:
    """SQLite with a map and without, an image of QEMU, and git with a big pack: all work, and all comes out right."""
    tree = rig.tree
    _make_database(tree / "read.db")
    shutil.copy(tree / "read.db", tree / "mapped.db")
    (rig.place / "raw").write_bytes(os.urandom(20 * MIB // _SMALLER))
    _run("qemu-img", "convert", "-O", "qcow2", rig.place / "raw", tree / "disk.qcow2")
    (tree / "project").mkdir()
    (tree / "project" / "big").write_bytes(os.urandom(12 * MIB // _SMALLER))
    (tree / "project" / "small").write_text("small\n")
    git = ("git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "safe.directory=*", "-C")
    _run(*git, tree / "project", "init", "-q")
    _run(*git, tree / "project", "add", ".")
    _run(*git, tree / "project", "commit", "-q", "-m", "all")
    _run(*git, tree / "project", "gc", "-q")
    models = rig.place / "models"
    shutil.copytree(tree, models)
    command = rig.restore(target, "--ranges", "*", "--range-threshold", "256KiB", "--limit", "1")
    paused(rig, target)
    for name, room in (("read.db", "0"), ("mapped.db", "268435456")):
        assert python(_USE_DATABASE, target / name, room) == python(_USE_DATABASE, models / name, room), name
    _run("qemu-img", "check", target / "disk.qcow2")
    assert marked(target / "disk.qcow2")
    windows = (*git[:-1], "-c", "core.packedGitWindowSize=64k", "-C", target / "project")
    assert _run(*windows, "show", "HEAD:small") == b"small\n"
    there, total = _present(rig, target)
    assert there < total * 3 // 4
    _run(*windows, "fsck", "--full", "--strict")
    assert _run(*git, target / "project", "show", "HEAD:big") == (models / "project" / "big").read_bytes()
    _run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", rig.place / "raw", target / "disk.qcow2")
    rig.finish(command, target)
    for name in ("read.db", "mapped.db"):
        assert _content(target / name) == _content(models / name), name
    rig.assert_clean(target)


def _content(path: Path) -> dict[int, bytes]:
    db = sqlite3.connect(path)
    try:
        return dict(db.execute("SELECT id, word FROM word"))
    finally:
        db.close()


def _run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
