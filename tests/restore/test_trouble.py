"""Sources that are damaged or vanish, disks that fill up, targets that hold something: an error, never zeros, nothing lost."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from active_restore.marker import MARKER
from tests.kernel.disks import MIB, mounted
from tests.kernel.rig import Rig, add_decoys, marked
from tests.kernel.tasks import Task, read, refused, run
from tests.kernel.waiting import wait_until
from tests.source import trees

if TYPE_CHECKING:
    from pathlib import Path

    from tests.source.repositories import Repositories, Repository


def use(rig: Rig, repository: Repository) -> Repository:
    """Restore from this repository."""
    rig.source = repository.spec
    rig.env.update(repository.env)
    return repository


def test_restic_equals_restic_restore(rig: Rig, repositories: Repositories, target: Path) -> None:
    expected = rig.place / "expected"
    use(rig, repositories.get("v2")).restored(expected)
    command = rig.restore(target)
    assert command.end()[0] == 0
    rig.verify(target)
    assert picture(target) == picture(expected)


def picture(root: Path) -> dict[str, object]:
    """All but access times, by path."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        one = path.lstat()
        key = os.fsencode(path.relative_to(root)).decode(errors="backslashreplace")
        names = [name for name in os.listxattr(path, follow_symlinks=False) if "SGI_ACL" not in name and name != MARKER]
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        links = 0 if path.is_dir() else one.st_nlink
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[key] = (one.st_mode, one.st_uid, one.st_gid, one.st_mtime_ns, links, one.st_rdev, attributes, content)
    return found


def test_damaged_pack_is_refused_until_it_is_repaired(rig: Rig, repositories: Repositories, ext4_target: Path) -> None:
    """Files of the damaged pack: EIO, listed, exit 3, still EIO when the agent has gone; repaired: resume ends with 0."""
    use(rig, repositories.get("v2").copy(rig.place / "repository"))
    packs = sorted((rig.place / "repository/data").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    good = packs[-1].read_bytes()
    packs[-1].chmod(0o600)
    packs[-1].write_bytes(random.Random(1).randbytes(len(good)))
    command = rig.restore(ext4_target)
    first = command.until("refused")
    assert first["errno"] == errno.EIO
    assert command.end()[0] == 3
    victims = [path for path in ext4_target.rglob("*") if marked(path)]
    assert victims
    for path in victims[:3]:
        assert refused(path) == errno.EIO
    assert rig.run("resume", ext4_target).returncode == 3
    assert refused(victims[0]) == errno.EIO
    packs[-1].write_bytes(good)
    done = rig.run("resume", ext4_target)
    assert done.returncode == 0, done.stderr
    rig.verify(ext4_target)


def test_refused_files_that_are_deleted_end_the_restore(rig: Rig, ext4_target: Path) -> None:
    (rig.tree / "good").write_bytes(b"good")
    (rig.tree / "changed").write_bytes(b"before" * 1000)
    add_decoys(rig.tree)
    command = rig.hold(ext4_target)
    (rig.tree / "changed").write_bytes(b"after")
    assert refused(ext4_target / "changed") == errno.EIO
    assert command.until("refused")["path"] == "changed"
    rig.finish(command, ext4_target, 3)
    assert read(ext4_target / "good") == b"good"
    assert refused(ext4_target / "changed") == errno.EIO
    (ext4_target / "changed").unlink()
    assert rig.run("resume", ext4_target).returncode == 0
    rig.assert_clean(ext4_target)


def test_source_that_comes_back(held_rig: Rig, ext4_target: Path) -> None:
    (held_rig.tree / "file").write_bytes(os.urandom(100_000))
    expected = (held_rig.tree / "file").read_bytes()
    command = held_rig.hold(ext4_target)
    away = held_rig.place / "away"
    held_rig.tree.rename(away)
    with Task("cat", ext4_target / "file") as task:
        command.until("notice")
        task.held()
        away.rename(held_rig.tree)
        assert task.output() == expected
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_source_that_stays_away(held_rig: Rig, ext4_target: Path) -> None:
    """After the fault timeout tasks get EIO; when it is there again the file is restored as if nothing had been."""
    (held_rig.tree / "file").write_bytes(os.urandom(100_000))
    command = held_rig.hold(ext4_target, "--fault-timeout", "1")
    away = held_rig.place / "away"
    held_rig.tree.rename(away)
    assert refused(ext4_target / "file") == errno.EIO
    away.rename(held_rig.tree)
    assert read(ext4_target / "file") == (held_rig.tree / "file").read_bytes()
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_workers_that_start_while_the_source_is_away(held_rig: Rig, ext4_target: Path) -> None:
    """However often they are started: those who wait are served when the source is there again."""
    (held_rig.tree / "file").write_bytes(os.urandom(100_000))
    expected = (held_rig.tree / "file").read_bytes()
    command = held_rig.hold(ext4_target)
    away = held_rig.place / "away"
    held_rig.tree.rename(away)
    with Task("cat", ext4_target / "file") as task:
        for _ in range(3):
            wait_until(lambda: held_rig.processes("restore.worker"), "a worker is there")
            held_rig.kill("restore.worker")
        task.held()
        away.rename(held_rig.tree)
        assert task.output() == expected
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_too_small_a_disk(rig: Rig) -> None:
    (rig.tree / "big").write_bytes(os.urandom(30 * MIB))
    with mounted("ext4", rig.place / "small", 24 * MIB) as disk:
        done = rig.run("restore", rig.source, disk.mount / "t")
        assert done.returncode == 17, done.stderr
        assert not list((disk.mount / "t").iterdir())
        rig.assert_clean(disk.mount / "t")


def test_disk_that_fills_up(held_rig: Rig) -> None:
    """A user takes the room: ENOSPC to who wants the file, the background waits; with room again all is restored."""
    (held_rig.tree / "file").write_bytes(os.urandom(20 * MIB))
    for number in range(4):
        os.truncate(held_rig.tree / f"decoy{number}", 1 << 20)
    with mounted("ext4", held_rig.place / "small", 64 * MIB) as disk:
        target = disk.mount / "t"
        command = held_rig.hold(target)
        with contextlib.suppress(OSError), open(disk.mount / "hog", "wb") as hog:
            while True:
                hog.write(bytes(MIB))
                hog.flush()
        if marked(target / "file"):
            assert refused(target / "file") == errno.ENOSPC
        held_rig.hurry(target)
        (disk.mount / "hog").unlink()
        assert command.end()[0] == 0
        held_rig.verify(target)


def test_existing_files_are_kept_or_replaced(rig: Rig, target: Path) -> None:
    for name in ("same", "newer", "missing", "turned"):
        (rig.tree / name).write_bytes(name.encode() * 1000)
    (rig.tree / "folder").mkdir()
    (rig.tree / "folder/inside").write_bytes(b"inside")
    shutil.copytree(rig.tree, target)
    (target / "newer").write_bytes(b"something else")
    (target / "missing").unlink()
    (target / "turned").write_bytes(b"t" * 6000)
    os.utime(target / "turned", ns=(0, (rig.tree / "turned").stat().st_mtime_ns))
    (target / "extra").write_bytes(b"extra")
    inode = (target / "same").stat().st_ino
    old = os.open(target / "newer", os.O_RDONLY)
    assert rig.run("restore", rig.source, target).returncode == 16
    done = rig.run("restore", rig.source, target, "--existing", "content")
    assert done.returncode == 0, done.stderr
    assert os.read(old, 100) == b"something else"
    os.close(old)
    assert (target / "same").stat().st_ino == inode
    (target / "extra").unlink()
    shutil.copystat(rig.tree, target)
    rig.verify(target)


def test_existing_by_metadata(rig: Rig, ext4_target: Path) -> None:
    """Size and time decide: what has both is trusted and kept."""
    (rig.tree / "trusted").write_bytes(b"content")
    (rig.tree / "touched").write_bytes(b"content")
    shutil.copytree(rig.tree, ext4_target)
    (ext4_target / "trusted").write_bytes(b"CONTENT")
    os.utime(ext4_target / "trusted", ns=(0, (rig.tree / "trusted").stat().st_mtime_ns))
    (ext4_target / "touched").write_bytes(b"CONTENT")
    assert rig.run("restore", rig.source, ext4_target, "--existing", "metadata").returncode == 0
    assert (ext4_target / "trusted").read_bytes() == b"CONTENT"
    assert (ext4_target / "touched").read_bytes() == b"content"


def test_target_with_a_default_acl(rig: Rig, target: Path) -> None:
    """What the target would bequeath to new files is not in the rig."""
    trees.fill(rig.tree)
    target.mkdir()
    target.chmod(0o2770)
    run("setfacl", "-d", "-m", "u:1234:rwx", target)
    assert rig.restore(target).end()[0] == 0
    rig.verify(target)


def test_second_agent(held_rig: Rig, ext4_target: Path) -> None:
    (held_rig.tree / "file").write_bytes(b"content")
    command = held_rig.hold(ext4_target)
    assert held_rig.run("restore", held_rig.source, ext4_target).returncode == 11
    assert held_rig.run("resume", ext4_target).returncode == 11
    assert held_rig.run("release", ext4_target).returncode == 11
    command.signal(signal.SIGINT)
    assert command.end()[0] == 130
    assert held_rig.run("restore", held_rig.source, ext4_target, "--existing", "metadata").returncode == 16
    held_rig.finish(held_rig.resume(ext4_target), ext4_target)
    held_rig.verify(ext4_target)


def test_two_restores_on_one_disk(held_rig: Rig, disk_pair: tuple[Path, Path]) -> None:
    """Each guard holds its own placeholders and leaves the other's alone."""
    one, two = disk_pair
    (held_rig.tree / "file").write_bytes(os.urandom(50_000))
    commands = held_rig.hold(one), held_rig.hold(two)
    for target in disk_pair:
        assert read(target / "file") == (held_rig.tree / "file").read_bytes()
    for command, target in zip(commands, disk_pair, strict=True):
        held_rig.finish(command, target)
    for target in disk_pair:
        done = held_rig.run("verify", held_rig.source, target, "--extra")
        assert done.returncode == 0, done.stdout
    held_rig.assert_clean(one)


@pytest.fixture
def disk_pair(ext4_target: Path) -> tuple[Path, Path]:
    return ext4_target, ext4_target.with_name(ext4_target.name + "-second")


def test_wrong_password_leaves_nothing(rig: Rig, repositories: Repositories, ext4_target: Path) -> None:
    use(rig, repositories.get("v2"))
    rig.env["RESTIC_PASSWORD"] = "wrong"
    assert rig.run("restore", rig.source, ext4_target).returncode == 12
    rig.assert_clean(ext4_target)


def test_what_could_not_be_planned_is_told_by_resume_too(held_rig: Rig, ext4_target: Path) -> None:
    """A file that its manifest does not know cannot be restored: the exit code says so after an interruption as well."""
    (held_rig.tree / "file").write_bytes(b"content")
    assert held_rig.run("manifest", held_rig.tree).returncode == 0
    (held_rig.tree / "stranger").write_bytes(b"not in the manifest")
    command = held_rig.hold(ext4_target)
    command.signal(signal.SIGINT)
    assert command.end()[0] == 130
    held_rig.finish(held_rig.resume(ext4_target), ext4_target, 3)
    held_rig.assert_clean(ext4_target)
