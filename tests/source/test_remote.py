"""What only a source behind a network can do wrong: cost a request for each file, fail for a while, go away."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from active_restore.errors import ContentError, SourceUnavailable
from active_restore.model import Kind, Node
from active_restore.source.restic.repository import ResticSource
from active_restore.store import location
from active_restore.store.turnstile import Turnstile
from tests.source import trees
from tests.store.servers import PASSWORD, USER, RestServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from active_restore.source.restic.seal import MasterKeys
    from tests.source.repositories import Repositories


@pytest.fixture
def server(repositories: Repositories, tmp_path: Path) -> Iterator[RestServer]:
    repositories.get("v2").copy(tmp_path / "repo")
    served = RestServer(tmp_path)
    yield served
    served.stop()


@pytest.fixture
def source(server: RestServer, keys: dict[str, MasterKeys]) -> Iterator[ResticSource]:
    spec = f"rest:http://{USER}:{quote(PASSWORD, safe='')}@{server.address}/repo"
    opened = ResticSource(location.parse(spec, {}), keys["v2"])
    yield opened
    opened.close()


def _files(source: ResticSource) -> list[Node]:
    return [node for node in trees.nodes(source.walk(source.select("latest"))) if node.kind is Kind.FILE]


def test_walking_costs_few_requests(source: ResticSource, server: RestServer) -> None:
    files = _files(source)
    assert len(files) > trees.SMALL_FILES
    # Listings of snapshots and index, one file of each, and the pack of the trees in one range.
    assert len(server.requests) <= 6


def test_many_small_files_cost_few_requests(source: ResticSource, server: RestServer, repositories: Repositories) -> None:
    files = [node for node in _files(source) if node.path.startswith(b"small/")]
    server.requests.clear()
    reader = source.reader()
    for path, found in trees.contents(reader, files).items():
        assert found == (repositories.tree / path.decode()).read_bytes()
    reader.close()
    # One each for the runs of a pack that lie close together; where others lie between is up to chance.
    assert len(server.requests) <= 6


def test_one_large_file_costs_few_requests(source: ResticSource, server: RestServer, repositories: Repositories) -> None:
    text = next(node for node in _files(source) if node.path == b"text")
    server.requests.clear()
    reader = source.reader()
    assert trees.content(reader, text) == (repositories.tree / "text").read_bytes()
    reader.close()
    # More than one blob of a hash each; how many is up to the repository's own chunker.
    assert len(text.content) > 32
    assert len(server.requests) == 1


def test_a_reader_that_ends_leaves_the_turnstile_to_the_others(
    server: RestServer, keys: dict[str, MasterKeys], repositories: Repositories, tmp_path: Path
) -> None:
    spec = f"rest:http://{USER}:{quote(PASSWORD, safe='')}@{server.address}/repo"
    place = location.parse(spec, {})._replace(turnstile=Turnstile(str(tmp_path / "connections"), 1))
    with contextlib.closing(ResticSource(place, keys["v2"])) as source:
        text = next(node for node in _files(source) if node.path == b"text")
        reader = source.reader()
        for _ in range(2):
            assert trees.content(reader, text) == (repositories.tree / "text").read_bytes()
            source.reader().close()
        other = source.reader()
        assert trees.content(other, text) == (repositories.tree / "text").read_bytes()
        other.close()
        assert trees.content(reader, text) == (repositories.tree / "text").read_bytes()
        reader.close()


def test_a_server_that_fails_now_and_then(source: ResticSource, server: RestServer, repositories: Repositories) -> None:
    server.refusals = 1
    files = _files(source)
    assert server.refusals == 0
    server.refusals = 2
    reader = source.reader()
    found = trees.contents(reader, files)
    assert server.refusals == 0
    assert not [one for one in found.values() if isinstance(one, ContentError)]
    reader.close()


def test_a_server_that_goes_away_and_comes_back(source: ResticSource, server: RestServer) -> None:
    files = _files(source)
    reader = source.reader()
    port = server.server_address[1]
    server.stop()
    large = max(files, key=lambda node: node.size)
    for stream in (reader.read_many([trees.ref(node) for node in files]), reader.read(trees.ref(large))):
        with pytest.raises(SourceUnavailable) as caught:
            list(stream)
        assert caught.value.hint
        assert "pass" not in f"{caught.value} {caught.value.hint}"
    with pytest.raises(SourceUnavailable):
        source.snapshots()
    again = RestServer(server.root, int(port))
    try:
        assert len(trees.content(reader, large)) == large.size
        assert len(source.snapshots()) == 1
    finally:
        again.stop()
    reader.close()


@pytest.mark.parametrize("truncated", [True, False], ids=["truncated", "deleted"])
def test_a_damaged_pack_on_a_server(source: ResticSource, server: RestServer, *, truncated: bool) -> None:
    files = _files(source)
    pack = max((server.root / "repo" / "data").rglob("*"), key=lambda one: one.stat().st_size)
    if truncated:
        pack.write_bytes(pack.read_bytes()[:-2_000_000])
    else:
        pack.unlink()
    reader = source.reader()
    found = trees.contents(reader, files)
    refused = {path for path, one in found.items() if isinstance(one, ContentError)}
    assert 0 < len(refused) < len(found)
    for node in files:
        if node.path in refused:
            with pytest.raises(ContentError):
                trees.content(reader, node)
    reader.close()
