"""Verify against real trees: equal ones, ones that differ in exactly one thing, and what the real restic restored."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from active_restore.cli.main import main
from active_restore.errors import TargetError
from active_restore.marker import MARKER
from active_restore.source.dir import DirSource
from active_restore.verify import Difference, Verifier

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def build(root: Path) -> None:
    """A tree with one of everything."""
    root.mkdir()
    (root / "dir").mkdir(mode=0o750)
    (root / "dir/big").write_bytes(os.urandom(3 * MIB + 17))
    (root / "dir/text").write_text("hello\n")
    (root / "empty").touch()
    with open(root / "sparse", "wb") as file:
        file.truncate(5 * MIB)
        file.seek(2 * MIB)
        file.write(b"in the middle")
    os.link(root / "dir/text", root / "linked")
    (root / "link").symlink_to("dir/text")
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "null", 0o20644, os.makedev(1, 3))
    (root / "twin1").write_text("same")
    (root / "twin2").write_text("same")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfename")).write_text("not UTF-8")
    (root / "setuid").write_text("#!/bin/sh\n")
    (root / "setuid").chmod(0o4755)
    os.chown(root / "dir/big", 1234, 5678)
    os.setxattr(root / "empty", "user.note", b"\x00\xff")
    subprocess.run(["setfacl", "-m", "u:1234:rw", root / "empty"], check=True)
    subprocess.run(["setcap", "cap_net_raw+ep", root / "twin1"], check=True)
    os.utime(root / "dir/text", ns=(1, 1_234_567_890_123_456_789))
    os.utime(root / "link", ns=(1, 987_654_321_987_654_321), follow_symlinks=False)
    os.utime(root / "dir", ns=(1, 1_111_111_111_111_111_111))


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "target"
    build(source)
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)
    return source, target


def compare(source: Path, target: Path, *, extra: bool = False) -> list[Difference]:
    found: list[Difference] = []
    tree = DirSource(str(source))
    snapshot = tree.select("latest")
    reader = tree.reader()
    verifier = Verifier(str(target), reader, found.append)
    try:
        verdict = verifier.run(tree.walk(snapshot), snapshot.time_ns, extra=extra)
    finally:
        verifier.close()
        reader.close()
    assert verdict.differences == len(found)
    names = [path.lstat() for path in source.rglob("*")]
    assert verdict.entries == len(names) + 1
    if not found:
        assert verdict.files == len({name.st_ino for name in names if stat.S_ISREG(name.st_mode)})
    return found


def test_equal(trees: tuple[Path, Path]) -> None:
    assert compare(*trees) == []
    assert compare(*trees, extra=True) == []


def flip(path: Path, offset: int) -> None:
    """Change one byte and put the time back."""
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def keep_mtime(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """The change, with the times of the root and of ``dir`` as before."""

    def changed(target: Path) -> None:
        kept = [(path, path.stat()) for path in (target, target / "dir")]
        change(target)
        for path, times in kept:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return changed


def replace_by(make: Callable[[Path], object], name: str) -> Callable[[Path], None]:
    def change(target: Path) -> None:
        os.unlink(target / name)
        make(target / name)

    return keep_mtime(change)


def cut_hard_link(target: Path) -> None:
    kept = target / "kept"
    shutil.copy2(target / "dir/text", kept)
    os.replace(kept, target / "dir/text")


def make_twins_one(target: Path) -> None:
    os.removexattr(target / "twin1", "security.capability")
    os.unlink(target / "twin2")
    os.link(target / "twin1", target / "twin2")


def swap_dir_for_symlink(target: Path) -> None:
    (target / "dir").rename(target.parent / "elsewhere")
    (target / "dir").symlink_to("../elsewhere")


CHANGES: dict[str, tuple[Callable[[Path], object], str, set[str]]] = {
    "first byte": (lambda t: flip(t / "dir/big", 0), "dir/big", {"content"}),
    "last byte": (lambda t: flip(t / "dir/big", 3 * MIB + 16), "dir/big", {"content"}),
    "in a hole": (lambda t: flip(t / "sparse", 5 * MIB - 1), "sparse", {"content"}),
    "before data in a hole": (lambda t: flip(t / "sparse", 17), "sparse", {"content"}),
    "zeros for data": (lambda t: flip(t / "sparse", 2 * MIB + 3), "sparse", {"content"}),
    "missing": (keep_mtime(lambda t: os.unlink(t / "empty")), "empty", {"missing"}),
    "mode": (lambda t: (t / "dir").chmod(0o755), "dir", {"mode"}),
    "setuid": (lambda t: (t / "setuid").chmod(0o755), "setuid", {"mode"}),
    "owner": (lambda t: os.chown(t / "link", 1, 0, follow_symlinks=False), "link", {"owner"}),
    "mtime": (lambda t: os.utime(t / "dir/big", ns=(0, 5)), "dir/big", {"mtime"}),
    "directory mtime": (lambda t: os.utime(t / "dir", ns=(0, 5)), "dir", {"mtime"}),
    "root mtime": (lambda t: os.utime(t, ns=(0, 5)), "", {"mtime"}),
    "symlink mtime": (lambda t: os.utime(t / "link", ns=(0, 5), follow_symlinks=False), "link", {"mtime"}),
    "xattr": (lambda t: os.setxattr(t / "empty", "user.note", b"x"), "empty", {"xattr user.note"}),
    "no xattr": (lambda t: os.removexattr(t / "empty", "user.note"), "empty", {"xattr user.note"}),
    "new xattr": (lambda t: os.setxattr(t / "dir", "user.new", b"x"), "dir", {"xattr user.new"}),
    "acl": (
        lambda t: subprocess.run(["setfacl", "-m", "u:1234:w,m::rw", t / "empty"], check=True),
        "empty",
        {"xattr system.posix_acl_access"},
    ),
    "capability": (
        lambda t: os.removexattr(t / "twin1", "security.capability"),
        "twin1",
        {"xattr security.capability"},
    ),
    "size": (lambda t: (t / "twin2").write_text("sam"), "twin2", {"size", "mtime"}),
    "device": (replace_by(lambda p: os.mknod(p, 0o20644, os.makedev(1, 5)), "null"), "null", {"device", "mtime"}),
    "fifo is a file": (replace_by(Path.touch, "fifo"), "fifo", {"type"}),
    "symlink": (replace_by(lambda p: p.symlink_to("dir/big"), "link"), "link", {"symlink", "mtime"}),
    "hard link cut": (keep_mtime(cut_hard_link), "dir/text", {"hard link"}),
    "marker": (lambda t: os.setxattr(t / "twin2", MARKER, b"x"), "twin2", {"not restored"}),
    "staging": (keep_mtime(lambda t: (t / ".active-restore-01").mkdir()), ".active-restore-01", {"leftover"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_difference(trees: tuple[Path, Path], name: str) -> None:
    change, path, expected = CHANGES[name]
    change(trees[1])
    found = compare(*trees)
    assert {(os.fsdecode(difference.path), difference.what) for difference in found} == {(path, what) for what in expected}


def test_two_files_that_became_one(trees: tuple[Path, Path]) -> None:
    keep_mtime(make_twins_one)(trees[1])
    assert "hard link" in {difference.what for difference in compare(*trees)}


def test_a_planted_symlink_is_not_followed(trees: tuple[Path, Path]) -> None:
    keep_mtime(swap_dir_for_symlink)(trees[1])
    found = {(difference.path, difference.what) for difference in compare(*trees)}
    assert found == {(b"dir", "type"), (b"dir/big", "missing"), (b"dir/text", "missing")}


def test_extra_names_only_when_asked(trees: tuple[Path, Path]) -> None:
    keep_mtime(lambda t: (t / "dir/new").touch())(trees[1])
    assert compare(*trees) == []
    assert [(found.path, found.what) for found in compare(*trees, extra=True)] == [(b"dir/new", "extra")]


def test_a_placeholder_that_was_moved_away(trees: tuple[Path, Path]) -> None:
    def plant(target: Path) -> None:
        (target / "moved").touch()
        os.setxattr(target / "moved", MARKER, b"x")

    keep_mtime(plant)(trees[1])
    assert [(found.path, found.what) for found in compare(*trees)] == [(b"moved", "leftover")]


def test_no_target(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(TargetError):
        compare(tmp_path / "s", tmp_path / "none")


@pytest.fixture
def restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A repository made by restic and what restic itself restored of it."""
    source, out = tmp_path / "source", tmp_path / "out"
    build(source)
    monkeypatch.setenv("RESTIC_PASSWORD", "open sesame")
    monkeypatch.setenv("RESTIC_CACHE_DIR", str(tmp_path / "cache"))
    repository = str(tmp_path / "repository")
    for arguments in (["init"], ["backup", str(source)], ["restore", "latest", "--target", str(out)]):
        subprocess.run(["restic", "-r", repository, *arguments], check=True, stdout=subprocess.DEVNULL)
    return f"restic:{repository}", out


def test_what_restic_restored(restored: tuple[str, Path], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    spec, out = restored
    tree = out / str(tmp_path / "source").lstrip("/")
    arguments = ["verify", spec, str(tree), "--snapshot", f"latest:{tmp_path / 'source'}"]
    assert main(arguments) == 0, capfd.readouterr().out
    assert "equal:" in capfd.readouterr().out
    flip(tree / "dir/big", 2 * MIB)
    assert main([*arguments, "--json"]) == 1
    told = capfd.readouterr().out
    assert '"what": "content", "path": "dir/big"' in told
    assert '"equal": false' in told


def test_the_whole_snapshot_has_no_metadata_of_its_root(restored: tuple[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    spec, out = restored
    assert main(["verify", spec, str(out), "--extra"]) == 0, capfd.readouterr().out


def test_a_socket(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / name / "s"))
        os.utime(tmp_path / name / "s", ns=(1, 1))
        os.utime(tmp_path / name, ns=(1, 1))
    assert compare(tmp_path / "a", tmp_path / "b") == []
