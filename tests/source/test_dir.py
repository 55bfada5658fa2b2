"""What only a directory as a source can do wrong: change under our hands."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from active_restore.errors import ContentError, NoRepository, RepositoryDamaged, SourceUnavailable
from active_restore.model import FileRef, Kind, Node, Problem
from active_restore.source import manifest
from active_restore.source.dir import DirReader, DirSource
from tests.source import trees

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CLOCK_REALTIME_COARSE = 5


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_bytes(b"content" * 500_000)
    (root / "other").write_bytes(b"other")
    os.truncate(root / "other", 5 << 20)
    (root / os.fsdecode(b"\xff\nname")).write_bytes(b"strange")
    return root


def _walk(tree: Path, subfolder: bytes = b"") -> tuple[dict[bytes, Node], dict[bytes, Problem]]:
    source = DirSource(str(tree))
    items = list(source.walk(source.select("latest"), subfolder))
    nodes = {item.path: item for item in items if isinstance(item, Node)}
    return nodes, {item.path: item for item in items if isinstance(item, Problem)}


def _ref(tree: Path, path: bytes = b"sub/file") -> FileRef:
    return trees.ref(_walk(tree)[0][path])


def _rewrite_between(stream: Iterator[object], change: object) -> None:
    next(stream)
    assert callable(change)
    change()
    with pytest.raises(ContentError) as caught:
        list(stream)
    assert caught.value.errno == errno.EIO


class TestChanges:
    def test_while_it_is_read(self, tree: Path) -> None:
        reader = DirReader(str(tree))
        path = tree / "sub" / "file"
        for change in (
            lambda: path.write_bytes(b"CONTENT" * 500_000),
            lambda: os.truncate(path, 10),
            lambda: os.utime(path, (1, 1)),
        ):
            _rewrite_between(reader.read(_ref(tree)), change)
            path.write_bytes(b"content" * 500_000)
        reader.close()

    def test_with_its_old_time_put_back(self, tree: Path) -> None:
        path = tree / "sub" / "file"

        def sneak() -> None:
            before = os.stat(path)
            # Older kernels stamp changes with the last timer tick: let one pass, or nothing could show.
            while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= before.st_ctime_ns:
                pass
            path.write_bytes(b"CONTENT" * 500_000)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

        reader = DirReader(str(tree))
        _rewrite_between(reader.read(_ref(tree)), sneak)
        reader.close()

    def test_since_it_was_planned(self, tree: Path) -> None:
        ref = _ref(tree)
        (tree / "sub" / "file").write_bytes(b"x")
        other = _ref(tree, b"other")
        reader = DirReader(str(tree))
        with pytest.raises(ContentError, match="changed"):
            list(reader.read(ref))
        ends = {position: item for position, item in reader.read_many([ref, other]) if not isinstance(item, tuple)}
        assert isinstance(ends[0], ContentError)
        assert ends[1] is None
        reader.close()

    @pytest.mark.parametrize("what", ["symlink", "fifo", "folder", "nothing", "parent"])
    def test_something_else_takes_its_place(self, tree: Path, what: str) -> None:
        ref = _ref(tree)
        path = tree / "sub" / "file"
        if what == "parent":
            (tree / "sub").rename(tree / "real")
            (tree / "sub").symlink_to("real")
        else:
            path.rename(tree / "moved")
        if what == "symlink":
            path.symlink_to("../moved")
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        reader = DirReader(str(tree))
        with pytest.raises(ContentError):
            list(reader.read(ref))
        reader.close()

    def test_whole_tree_vanishes_and_comes_back(self, tree: Path) -> None:
        ref = _ref(tree)
        reader = DirReader(str(tree))
        tree.rename(tree.with_name("away"))
        with pytest.raises(SourceUnavailable):
            list(reader.read(ref))
        with pytest.raises(SourceUnavailable):
            list(reader.read_many([ref]))
        tree.with_name("away").rename(tree)
        assert sum(len(piece.data) for piece in reader.read(ref)) == ref.size
        reader.close()


class TestWalk:
    def test_our_own_folders_are_no_part_of_it(self, tree: Path) -> None:
        (tree / ".active-restore-staging").mkdir()
        (tree / ".active-restore-staging" / "x").write_bytes(b"x")
        (tree / "sub" / ".active-restored").write_bytes(b"a user's")
        nodes, problems = _walk(tree)
        assert set(nodes) == {b"", b"sub", b"sub/file", b"sub/.active-restored", b"other", b"\xff\nname"}
        assert not problems

    def test_stays_on_its_mount(self, tree: Path) -> None:
        (tree / "mounted").mkdir(mode=0o711)
        subprocess.run(["mount", "-t", "tmpfs", "none", tree / "mounted"], check=True)
        try:
            (tree / "mounted" / "inside").write_bytes(b"x")
            nodes, problems = _walk(tree)
        finally:
            subprocess.run(["umount", tree / "mounted"], check=True)
        assert b"mounted" in nodes
        assert b"mounted/inside" not in nodes
        assert not problems

    def test_order_is_that_of_bytes(self, tree: Path) -> None:
        assert list(_walk(tree)[0]) == [b"", b"other", b"sub", b"\xff\nname", b"sub/file"]

    def test_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        for place in ("missing", "file"):
            with pytest.raises(NoRepository):
                DirSource.open(str(tmp_path / place))


def _save(tree: Path) -> str:
    path, files = manifest.create(str(tree))
    assert files == sum(one.is_file() for one in tree.rglob("*") if not one.name.startswith(".active-restore"))
    return path


class TestManifest:
    def test_content_is_verified(self, tree: Path) -> None:
        assert _save(tree) == str(tree / manifest.NAME)
        nodes, problems = _walk(tree)
        assert not problems
        reader = DirReader(str(tree))
        for path in (b"sub/file", b"other", b"\xff\nname"):
            assert trees.content(reader, nodes[path]) == (tree / os.fsdecode(path)).read_bytes()
        reader.close()

    def test_digests_are_those_of_sha256sum(self, tree: Path) -> None:
        _save(tree)
        digests = manifest.load(str(tree))
        assert digests is not None
        for path, digest in digests.items():
            assert digest == hashlib.sha256((tree / os.fsdecode(path)).read_bytes()).digest()

    def test_one_flipped_bit_is_found_whatever_the_times_say(self, tree: Path) -> None:
        _save(tree)
        path = tree / "sub" / "file"
        before = os.stat(path)
        with open(path, "r+b") as file:
            file.seek(2_000_000)
            file.write(b"!")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        ref = _ref(tree)
        reader = DirReader(str(tree))
        with pytest.raises(ContentError, match="manifest"):
            list(reader.read(ref))
        reader.close()

    def test_works_for_a_subfolder(self, tree: Path) -> None:
        _save(tree)
        nodes, problems = _walk(tree, b"sub")
        assert set(nodes) == {b"", b"file"}
        assert not problems
        reader = DirReader(str(tree))
        assert trees.content(reader, nodes[b"file"]) == (tree / "sub" / "file").read_bytes()
        reader.close()

    def test_what_is_new_or_gone_is_a_problem(self, tree: Path) -> None:
        _save(tree)
        (tree / "sub" / "file").unlink()
        (tree / "sub" / "new").write_bytes(b"new")
        nodes, problems = _walk(tree)
        assert set(problems) == {b"sub/new", b"sub/file"}
        assert b"sub/new" not in nodes
        assert set(_walk(tree, b"sub")[1]) == {b"new", b"file"}

    def test_can_be_made_again(self, tree: Path) -> None:
        _save(tree)
        (tree / "new").write_bytes(b"new")
        _save(tree)
        assert not _walk(tree)[1]
        assert not [name for name in os.listdir(tree) if name.endswith(".new")]

    def test_lies_beside_a_directory_that_is_read_only(self, tree: Path) -> None:
        subprocess.run(["mount", "--bind", tree, tree], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", tree], check=True)
            assert _save(tree) == str(tree) + manifest.NAME
            nodes, problems = _walk(tree)
        finally:
            subprocess.run(["umount", tree], check=True)
        assert not problems
        assert manifest.load(str(tree)) is not None
        assert len([node for node in nodes.values() if node.kind is Kind.FILE]) == 3

    @pytest.mark.parametrize(
        ("old", "new"),
        [(b"manifest 1 sha256", b"manifest 2 sha256"), (b"active", b"ACTIVE"), (b"end 3\0", b""), (b"end 3", b"end 4"),
         (b"  other", b" other"), (b"\0", b"\n"), (b"end 3\0", b"end 3\0x")],
        ids=repr,
    )  # fmt: skip
    def test_damaged_manifest_stops(self, tree: Path, old: bytes, new: bytes) -> None:
        path = tree / manifest.NAME
        _save(tree)
        text = path.read_bytes()
        assert old in text
        path.write_bytes(text.replace(old, new))
        with pytest.raises(RepositoryDamaged) as caught:
            _walk(tree)
        assert caught.value.hint

    def test_an_error_leaves_the_old_one(self, tree: Path) -> None:
        _save(tree)
        before = (tree / manifest.NAME).read_bytes()

        def failing() -> Iterator[tuple[bytes, bytes]]:
            yield b"a", b"d" * 32
            raise OSError(errno.EIO, "broken")

        with pytest.raises(OSError, match="broken"):
            manifest.save(str(tree), failing())
        assert (tree / manifest.NAME).read_bytes() == before
        assert sorted(os.listdir(tree)) == sorted([manifest.NAME, "other", "sub", os.fsdecode(b"\xff\nname")])
