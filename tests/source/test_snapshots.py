"""Snapshots of real restic: several, of absolute paths, with tags."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from active_restore.errors import SnapshotError
from active_restore.model import Kind
from active_restore.source.dir import DirSource
from active_restore.source.restic.repository import ResticSource
from active_restore.store import location
from tests.source import trees

if TYPE_CHECKING:
    from collections.abc import Iterator

    from active_restore.source.restic.seal import MasterKeys
    from tests.source.repositories import Repositories


@pytest.fixture(scope="module")
def source(
    repositories: Repositories, keys: dict[str, MasterKeys], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ResticSource]:
    """A repository with a second snapshot, of two absolute paths."""
    copy = repositories.get("v2").copy(tmp_path_factory.mktemp("several") / "repo")
    paths = [str(repositories.tree / name) for name in ("small", "hollow")]
    copy.restic("backup", *paths, "--host", "elsewhere", "--tag", "a,b")
    opened = ResticSource(location.parse(copy.place, {}), keys["v2"])
    yield opened
    opened.close()


def test_listing_and_selection(source: ResticSource, repositories: Repositories) -> None:
    first, second = source.snapshots()
    assert (first.hostname, first.tags) == ("somewhere", ("one",))
    assert (second.hostname, second.tags) == ("elsewhere", ("a", "b"))
    assert set(second.paths) == {str(repositories.tree / name) for name in ("small", "hollow")}
    assert first.time_ns < second.time_ns
    assert source.select("latest") == second
    assert source.select(first.id[:12].upper()) == first
    with pytest.raises(SnapshotError) as caught:
        source.select("0" * 64)
    assert first.id[:8] in caught.value.hint


def test_absolute_paths_are_walked_as_they_are_stored(source: ResticSource, repositories: Repositories) -> None:
    snapshot = source.select("latest")
    found = trees.nodes(source.walk(snapshot))
    top = os.fsencode(repositories.tree).strip(b"/")
    parts = top.split(b"/")
    expected = [b""] + [b"/".join(parts[: depth + 1]) for depth in range(len(parts))]
    assert [node.path for node in found[: len(expected)]] == expected
    assert (found[0].mode, found[0].mtime_ns, found[0].uid) == (0o755, snapshot.time_ns, 0)
    assert {node.path.rpartition(b"/")[2] for node in found if node.path.rpartition(b"/")[0] == top} == {b"small", b"hollow"}


def test_subfolder_of_an_absolute_path_equals_the_folder(source: ResticSource, repositories: Repositories) -> None:
    folder = os.fsencode(repositories.tree / "hollow")
    (root,) = trees.nodes(source.walk(source.select("latest"), folder))
    status = os.stat(folder)
    assert (root.kind, root.mode, root.mtime_ns) == (Kind.DIR, 0o3770, status.st_mtime_ns)
    assert [name for name, _ in root.xattrs] == [b"system.posix_acl_default"]
    small = os.fsencode(repositories.tree / "small")
    original = DirSource(os.fsdecode(small))
    ours = trees.fingerprint(source, trees.nodes(source.walk(source.select("latest"), small)))
    theirs = trees.fingerprint(original, trees.nodes(original.walk(original.select("latest"))))
    assert ours == theirs
