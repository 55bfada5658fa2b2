"""What has changed: every way to change something is told, and where anything may be missing, that is said instead."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from active_restore.errors import ScanNeeded
from active_restore.linux import fanotify
from active_restore.linux.handles import HandleMaker, open_handle
from active_restore.relax import changes
from active_restore.relax.changes import Changes
from tests.kernel.disks import mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kernel.rig import Rig
    from tests.relax.conftest import Relaxed


@pytest.fixture
def tree(target: Path) -> Path:
    """A tree on each kind of file system."""
    return planted(target)


def planted(place: Path) -> Path:
    (place / "deep/er").mkdir(parents=True)
    (place / "empty").mkdir()
    for name in ("a", "b", "c", "deep/a", "deep/er/a", "deep/er/b"):
        (place / name).write_bytes(name.encode() * 100)
    return place


@contextlib.contextmanager
def watching(tree: Path) -> Iterator[Changes]:
    found = Changes(str(tree))
    try:
        yield found
    finally:
        found.close()


def since(watch: Changes, tree: Path, token: str) -> list[str]:
    return [os.fsdecode(path) for path in watch.since(token, os.fsencode(tree)).paths]


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


def truncate(path: Path) -> None:
    os.truncate(path, 7)


def replace(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text("new")
    fresh.rename(path)


WAYS: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "append": (lambda tree: append(tree / "deep/a"), {"deep/a"}),
    "truncate by path": (lambda tree: truncate(tree / "a"), {"a"}),
    "create": (lambda tree: (tree / "new").write_text("x"), {"new"}),
    "create empty": (lambda tree: (tree / "deep/new").touch(), {"deep/new"}),
    "delete": (lambda tree: (tree / "deep/er/b").unlink(), {"deep/er/b"}),
    "replace": (lambda tree: replace(tree / "a"), {"a", "fresh"}),
    "rename": (lambda tree: (tree / "a").rename(tree / "deep/z"), {"a", "deep/z"}),
    "rename a directory": (
        lambda tree: (tree / "deep").rename(tree / "empty/moved"),
        {"deep", "empty/moved", "empty/moved/a", "empty/moved/er", "empty/moved/er/a", "empty/moved/er/b"},
    ),
    "move a directory in": (
        lambda tree: (tree.parent / f"{tree.name}-beside").rename(tree / "in"),
        {"in", "in/inner", "in/inner/file"},
    ),
    "move a directory out": (lambda tree: (tree / "deep/er").rename(tree.parent / f"{tree.name}-out"), {"deep/er"}),
    "delete a tree": (
        lambda tree: shutil.rmtree(tree / "deep"),
        {"deep"},
    ),
    "mode": (lambda tree: (tree / "b").chmod(0o600), {"b"}),
    "mode of a directory": (lambda tree: (tree / "deep").chmod(0o700), {"deep"}),
    "times": (lambda tree: os.utime(tree / "b", (1, 1)), {"b"}),
    "an attribute": (lambda tree: os.setxattr(tree / "b", "user.x", b"1"), {"b"}),
    "link": (lambda tree: (tree / "linked").hardlink_to(tree / "c"), {"linked"}),
    "symlink": (lambda tree: (tree / "pointer").symlink_to("nowhere"), {"pointer"}),
    "fifo": (lambda tree: os.mkfifo(tree / "fifo"), {"fifo"}),
    "make a directory": (lambda tree: (tree / "deep/new").mkdir(), {"deep/new"}),
    "the top": (lambda tree: tree.chmod(0o711), {"."}),
    "nothing": (lambda tree: (tree / "a").read_bytes(), set()),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_change_something(way: str, tree: Path) -> None:
    beside = tree.parent / f"{tree.name}-beside/inner"
    beside.mkdir(parents=True)
    (beside / "file").write_text("x")
    do, expected = WAYS[way]
    with watching(tree) as watch:
        (tree / "empty/early").touch()
        token = watch.token()
        do(tree)
        append(beside / "file") if beside.exists() else None
        # A link is a change of the other name's file, too: the kernel may know it by either.
        assert set(since(watch, tree, token)) - {"c"} == expected
        assert set(since(watch, tree, "")) >= expected | {"empty/early"}
        assert since(watch, tree, watch.token()) == []


def test_a_renamed_directory_is_told_by_its_new_name(tree: Path) -> None:
    with watching(tree) as watch:
        token = watch.token()
        append(tree / "deep/er/a")
        (tree / "deep").rename(tree / "shallow")
        assert "shallow/er/a" in since(watch, tree, token)


def test_who_writes_without_any_event(tree: Path) -> None:
    """Through a descriptor that stays open, a mapping, or a loop device on a file."""
    with (tree / "a").open("r+b") as file, (tree / "b").open("r+b") as mapped:
        with mmap.mmap(mapped.fileno(), 0) as memory:
            mapped.close()
            with watching(tree) as watch:
                assert since(watch, tree, watch.token()) == ["a", "b"]
                memory[0] = 1
                file.write(b"x")
                assert since(watch, tree, watch.token()) == ["a", "b"]
                file.close()
                memory.close()
                token = watch.token()
                assert since(watch, tree, token) == []
                image = tree / "image"
                with image.open("wb") as new:
                    new.truncate(1 << 20)
                device = subprocess.run(["losetup", "--show", "-f", image], capture_output=True, text=True, check=True)
                try:
                    assert since(watch, tree, watch.token()) == ["image"]
                finally:
                    subprocess.run(["losetup", "-d", device.stdout.strip()], check=True)


def test_a_folder_of_what_is_watched(tree: Path) -> None:
    with watching(tree) as watch:
        assert watch.knows(os.fsencode(tree / "deep"))
        assert not watch.knows(os.fsencode(tree.parent))
        token = watch.token()
        append(tree / "deep/er/a")
        append(tree / "a")
        (tree / "deep").chmod(0o700)
        assert since(watch, tree / "deep", token) == [".", "er/a"]


def test_names_that_are_no_text(tree: Path) -> None:
    with watching(tree) as watch:
        name = b"\xff\xfe\n"
        with open(os.fsencode(tree) + b"/" + name, "w") as file:
            file.write("x")
        assert watch.since("", os.fsencode(tree)).paths == [name]


def test_other_names_of_a_file_are_counted(tree: Path) -> None:
    (tree / "other").hardlink_to(tree / "a")
    with watching(tree) as watch:
        append(tree / "a")
        found = watch.since("", os.fsencode(tree))
        assert (found.paths, found.linked) == ([b"a"], 1)


def test_tokens_that_are_none(tree: Path) -> None:
    with watching(tree) as watch, watching(tree) as another:
        session, _, number = watch.token().rpartition("-")
        for token in (another.token(), f"{session}-99", f"{session}-x", f"{session}-", number, "-1", "nonsense"):
            with pytest.raises(ScanNeeded):
                watch.since(token, os.fsencode(tree))


def test_more_than_we_hold(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_MOST", 50)
    with watching(tree) as watch:
        token = watch.token()
        for number in range(100):
            (tree / f"new{number}").touch()
        for one in (token, ""):
            with pytest.raises(ScanNeeded):
                watch.since(one, os.fsencode(tree))
        again = watch.token()
        append(tree / "a")
        assert since(watch, tree, again) == ["a"]


def test_more_than_the_kernel_holds(ext4_target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory for events runs out: the same event tells of it."""
    monkeypatch.setattr(changes, "_INIT", changes._INIT & ~fanotify.FAN_UNLIMITED_QUEUE)
    tree = planted(ext4_target)
    with open("/proc/sys/fs/fanotify/max_queued_events") as limit:
        most = int(limit.read())
    with watching(tree) as watch:
        token = watch.token()
        for number in range(most // 2 + 100):
            os.symlink("x", tree / f"new{number}")
            os.unlink(tree / f"new{number}")
        with pytest.raises(ScanNeeded):
            watch.since(token, os.fsencode(tree))
        again = watch.token()
        append(tree / "a")
        assert since(watch, tree, again) == ["a"]


def test_somebody_who_comes_by_a_handle(tmp_path: Path) -> None:
    """As an NFS server may: the kernel knows no name, and who asks is told to look at everything."""
    with mounted("ext4", tmp_path / "disk") as disk:
        (disk.mount / "tree").mkdir()
        (disk.mount / "tree/file").write_text("x")
        handle = HandleMaker().of_name(os.fsencode(disk.mount / "tree/file"))
        subprocess.run(["umount", disk.mount], check=True)
        subprocess.run(["mount", "-o", "loop", disk.mount.with_name("ext4.img"), disk.mount], check=True)
        with watching(disk.mount / "tree") as watch:
            mount = os.open(disk.mount, os.O_RDONLY)
            try:
                fd = open_handle(mount, handle, os.O_WRONLY)
                os.write(fd, b"y")
                os.close(fd)
            finally:
                os.close(mount)
            with pytest.raises(ScanNeeded):
                watch.since("", os.fsencode(disk.mount / "tree"))


def act(tree: Path, chance: random.Random) -> None:
    """One random change."""
    folders = [tree, *(path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink())]
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    name = f"n{chance.randrange(40)}"
    folder = chance.choice(folders)
    match chance.randrange(9):
        case 0 | 1:
            with contextlib.suppress(OSError):
                (folder / name).write_bytes(chance.randbytes(chance.randrange(3000)))
        case 2:
            (folder / name).mkdir(exist_ok=True) if not (folder / name).exists() else None
        case 3 if files:
            append(chance.choice(files))
        case 4 if files:
            chance.choice(files).unlink()
        case 5 if files:
            with contextlib.suppress(OSError):
                chance.choice(files).rename(folder / name)
        case 6:
            with contextlib.suppress(OSError):
                chance.choice(folders[1:] or folders).rename(folder / name)
        case 7 if len(folders) > 6:
            shutil.rmtree(chance.choice(folders[1:]))
        case 8 if files:
            chance.choice(files).chmod(chance.choice((0o600, 0o640, 0o644)))


def test_a_mirror_by_rsync_stays_the_same_as_the_tree(rig: Rig, relaxed: Relaxed, ext4_target: Path, tmp_path: Path) -> None:
    """As the README shows it: after each round of random changes the list alone brings the mirror up to date."""
    tree, mirror = planted(ext4_target), tmp_path / "mirror"
    chance = random.Random(10)
    relaxed.start(tree)
    token = rig.run("changed", tree, "--token").stdout.strip()
    subprocess.run(["rsync", "-a", f"{tree}/", mirror], check=True)
    for _ in range(6):
        for _ in range(60):
            act(tree, chance)
        fresh = rig.run("changed", tree, "--token").stdout.strip()
        told = subprocess.run(rig.argv("changed", tree, "--since", token, "-0"), env=rig.env, capture_output=True, check=True)
        how = ["-a", "-r", "--delete", "--delete-missing-args", "--force", "--files-from=-", "-0"]
        listed: list[str | Path] = ["rsync", *how, f"{tree}/", mirror]
        subprocess.run(listed, input=told.stdout, check=True)
        compared = ["rsync", "-aniO", "--checksum", "--delete", f"{tree}/", f"{mirror}/"]
        assert subprocess.run(compared, capture_output=True, text=True, check=True).stdout == ""
        token = fresh
    assert relaxed.stop() == 0


def test_what_changed_goes_into_a_snapshot_of_restic(rig: Rig, relaxed: Relaxed, ext4_target: Path, tmp_path: Path) -> None:
    tree = planted(ext4_target)
    env = {**rig.env, "RESTIC_PASSWORD": "x", "RESTIC_REPOSITORY": str(tmp_path / "repository"), "HOME": str(tmp_path)}
    subprocess.run(["restic", "init", "-q"], env=env, check=True)
    relaxed.start(tree)
    token = rig.run("changed", tree, "--token").stdout.strip()
    append(tree / "deep/a")
    (tree / "a").unlink()
    (tree / "new").mkdir()
    (tree / "new/file").write_text("x")
    files = rig.run("changed", tree, "--since", token, "--only", "files")
    assert files.stdout.splitlines() == ["deep/a", "new/file"]
    assert rig.run("changed", tree, "--since", token, "--only", "gone").stdout == "a\n"
    listed = subprocess.run(
        rig.argv("changed", tree, "--since", token, "--only", "files", "-0"), env=rig.env, capture_output=True, check=True
    )
    subprocess.run(["restic", "backup", "-q", "--files-from-raw", "-"], input=listed.stdout, env=env, cwd=tree, check=True)
    shown = subprocess.run(["restic", "ls", "-q", "latest"], env=env, capture_output=True, text=True, check=True).stdout
    assert [line for line in shown.splitlines() if line.endswith(("/a", "/b", "/c", "/file"))] == ["/deep/a", "/new/file"]
    assert relaxed.stop() == 0


def test_asking_and_not_knowing(rig: Rig, relaxed: Relaxed, ext4_target: Path) -> None:
    tree = planted(ext4_target)
    assert rig.run("changed", tree).returncode == 19
    relaxed.start(tree)
    assert rig.run("changed", tree.parent).returncode == 19
    token = rig.run("changed", tree, "--token").stdout.strip()
    append(tree / "deep/a")
    assert rig.run("changed", tree / "deep", "--since", token, "--json").stdout == '{"event": "changed", "path": "a"}\n'
    assert rig.run("changed", tree).stdout == "deep/a\n"
    # Whatever happened while nobody watched.
    assert relaxed.stop() == 0
    append(tree / "a")
    relaxed.start(tree)
    done = rig.run("changed", tree, "--since", token)
    assert (done.returncode, done.stdout) == (20, "")
    assert "hint: look at everything once" in done.stderr
    assert relaxed.stop() == 0
    relaxed.start(tree, settings="changes = false")
    assert rig.run("changed", tree).returncode == 19
    assert relaxed.stop() == 0
