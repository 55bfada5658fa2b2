"""Damage to a repository of the real restic: what is lost is named, everything else is read."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from active_restore.errors import ContentError, RepositoryDamaged, SourceUnavailable, WrongPassword
from active_restore.model import Kind, Node, Problem
from active_restore.source.open import open_source
from tests.source import trees
from tests.source.repositories import PASSWORD, Repository

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from active_restore.source.restic.repository import ResticSource
    from tests.source.repositories import Repositories

    Make = Callable[[], tuple[Path, ResticSource]]


def _flip(path: Path, place: float = 0.5) -> None:
    """Invert a byte."""
    raw = bytearray(path.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 0xFF
    path.write_bytes(raw)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


HARM = [_flip, _truncate, _empty, os.unlink]


def _only(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if path.is_file()]
    return found


def _walk(source: ResticSource) -> tuple[list[Node], list[Problem]]:
    items = list(source.walk(source.select("latest")))
    return [item for item in items if isinstance(item, Node)], [item for item in items if isinstance(item, Problem)]


def _read_all(source: ResticSource, nodes: list[Node], original: Path) -> set[bytes]:
    """Read every file, compare each byte with the original; the paths that were refused."""
    files = [node for node in nodes if node.kind is Kind.FILE]
    reader = source.reader()
    refused = set()
    for path, found in trees.contents(reader, files).items():
        if isinstance(found, ContentError):
            refused.add(path)
            assert str(found)
        else:
            assert found == (original / os.fsdecode(path)).read_bytes()
    for node in files:
        if node.path in refused:
            with pytest.raises(ContentError):
                trees.content(reader, node)
    reader.close()
    return refused


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_index_is_replaced_by_pack_headers(damaged: Make, repositories: Repositories, harm: Callable[[Path], None]) -> None:
    path, source = damaged()
    harm(_only(path / "index"))
    nodes, problems = _walk(source)
    assert not problems
    assert len(nodes) > trees.SMALL_FILES
    assert _read_all(source, nodes, repositories.tree) == set()


def test_lost_index_file_is_found_out_while_walking(damaged: Make, repositories: Repositories, tmp_path: Path) -> None:
    path, source = damaged()
    before = {one.name for one in (path / "index").iterdir()}
    more = tmp_path / "more"
    more.mkdir()
    (more / "new").write_bytes(b"something new")
    Repository(str(path), {"RESTIC_PASSWORD": PASSWORD}).restic("backup", ".", cwd=more)
    for name in before:
        (path / "index" / name).unlink()
    # The other index file is good: that one is missing shows only when a tree is not found.
    oldest = source.snapshots()[0]
    assert list(source.index.copies(source._snapshots.tree(oldest))) == []
    items = list(source.walk(oldest))
    assert not [item for item in items if isinstance(item, Problem)]
    assert _read_all(source, [item for item in items if isinstance(item, Node)], repositories.tree) == set()


@pytest.mark.parametrize("place", [0.0, 0.001, 0.3, 0.9])
def test_flipped_byte_in_a_data_pack_refuses_only_what_lies_there(
    damaged: Make, repositories: Repositories, place: float
) -> None:
    path, source = damaged()
    nodes, _ = _walk(source)
    pack = max((path / "data").rglob("*"), key=lambda one: one.stat().st_size)
    _flip(pack, place)
    refused = _read_all(source, nodes, repositories.tree)
    assert 1 <= len(refused) <= 2 or refused == {b"copy", b"again"}


@pytest.mark.parametrize("harm", [_truncate, _empty, os.unlink], ids=lambda harm: harm.__name__)
def test_lost_data_pack_refuses_what_lay_in_it(damaged: Make, repositories: Repositories, harm: Callable[[Path], None]) -> None:
    path, source = damaged()
    nodes, _ = _walk(source)
    harm(max((path / "data").rglob("*"), key=lambda one: one.stat().st_size))
    refused = _read_all(source, nodes, repositories.tree)
    assert 0 < len(refused) < len([node for node in nodes if node.kind is Kind.FILE])


def test_random_flips_never_give_wrong_bytes(damaged: Make, repositories: Repositories) -> None:
    path, source = damaged()
    nodes, _ = _walk(source)
    chance = random.Random(7)
    for pack in sorted((path / "data").rglob("*")):
        if pack.is_file():
            for _ in range(20):
                _flip(pack, chance.random())
    assert _read_all(source, nodes, repositories.tree)


def test_damaged_subtree_is_a_problem_of_its_folder(damaged: Make, repositories: Repositories) -> None:
    path, source = damaged()
    whole, _ = _walk(source)
    small = _subtree(source, b"small")
    place = next(source.index.copies(small))
    pack = path / "data" / source.index.pack_name(place.pack)[:2] / source.index.pack_name(place.pack)
    raw = bytearray(pack.read_bytes())
    raw[place.offset + place.length // 2] ^= 1
    pack.write_bytes(raw)
    nodes, problems = _walk(source)
    assert [problem.path for problem in problems] == [b"small"]
    assert {node.path for node in whole} - {node.path for node in nodes} == {
        node.path for node in whole if node.path.startswith(b"small/")
    }
    assert _read_all(source, nodes, repositories.tree) == set()


def _subtree(source: ResticSource, name: bytes) -> bytes:
    """Id of the tree of a folder at the top."""
    from active_restore.source.restic import tree
    from active_restore.source.restic.blobs import BlobLoader

    info = source.select("latest")
    loader = BlobLoader(source._store, source.index, source._box)
    for item in tree.nodes(loader.load(source._snapshots.tree(info), 1 << 24), b""):
        if isinstance(item, tree.Folder) and item.node.path == name:
            return item.subtree
    raise AssertionError(name)


def test_damaged_root_tree(damaged: Make) -> None:
    path, source = damaged()
    root = source._snapshots.tree(source.select("latest"))
    place = next(source.index.copies(root))
    pack = path / "data" / source.index.pack_name(place.pack)[:2] / source.index.pack_name(place.pack)
    raw = bytearray(pack.read_bytes())
    raw[place.offset] ^= 1
    pack.write_bytes(raw)
    with pytest.raises(RepositoryDamaged) as caught:
        list(source.walk(source.select("latest")))
    assert caught.value.hint


@pytest.mark.parametrize("harm", [_flip, _truncate, _empty], ids=lambda harm: harm.__name__)
def test_damaged_snapshot(damaged: Make, harm: Callable[[Path], None]) -> None:
    path, source = damaged()
    snapshot = _only(path / "snapshots")
    harm(snapshot)
    for name in ("latest", snapshot.name[:8]):
        with pytest.raises(RepositoryDamaged):
            source.select(name)


@pytest.mark.parametrize("harm", [_flip, _truncate, _empty], ids=lambda harm: harm.__name__)
def test_damaged_config(damaged: Make, harm: Callable[[Path], None]) -> None:
    path, _ = damaged()
    harm(path / "config")
    with pytest.raises(RepositoryDamaged) as caught:
        open_source(f"restic:{path}", {"RESTIC_PASSWORD": PASSWORD})
    assert caught.value.hint


@pytest.mark.parametrize("harm", [_truncate, _empty], ids=lambda harm: harm.__name__)
def test_damaged_key(damaged: Make, harm: Callable[[Path], None]) -> None:
    path, _ = damaged()
    harm(_only(path / "keys"))
    with pytest.raises(RepositoryDamaged):
        open_source(f"restic:{path}", {"RESTIC_PASSWORD": PASSWORD})


def test_wrong_password_says_what_to_do(repositories: Repositories) -> None:
    with pytest.raises(WrongPassword) as caught:
        open_source(repositories.get("v2").spec, {"RESTIC_PASSWORD": "wrong"})
    assert "RESTIC_PASSWORD" in caught.value.hint
    assert "wrong" not in str(caught.value)


def test_source_that_vanishes_is_unavailable_and_comes_back(damaged: Make, repositories: Repositories) -> None:
    path, source = damaged()
    nodes, _ = _walk(source)
    files = [trees.ref(node) for node in nodes if node.kind is Kind.FILE]
    reader = source.reader()
    away = path.with_name("away")
    path.rename(away)
    with pytest.raises(SourceUnavailable):
        list(reader.read_many(files))
    with pytest.raises(SourceUnavailable):
        list(reader.read(max(files, key=lambda one: one.size)))
    with pytest.raises(SourceUnavailable):
        source.select("latest")
    away.rename(path)
    reader.close()
    assert _read_all(source, nodes, repositories.tree) == set()
