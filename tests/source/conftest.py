"""Repositories and sources for the tests; each repository is made once in a session."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import pytest

from active_restore.source.dir import DirSource
from active_restore.source.open import open_source
from active_restore.source.restic.keys import open_keys
from active_restore.source.restic.repository import ResticSource
from active_restore.store import location
from tests.source import trees
from tests.source.forge import Forge
from tests.source.repositories import NAMES, PASSWORD, Repositories, Repository
from tests.store import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from active_restore.source.base import Source
    from active_restore.source.restic.seal import MasterKeys


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repositories]:
    root = tmp_path_factory.mktemp("repositories")
    with contextlib.ExitStack() as stack:
        yield Repositories(
            root,
            lambda: stack.enter_context(servers.s3_server()),
            lambda: stack.enter_context(servers.rest_server(root / "served")),
        )


class Backup(NamedTuple):
    """A source, and a tree that it must be equal to."""

    source: Source
    expected: Path
    name: str


@pytest.fixture(scope="session", params=["dir", *NAMES])
def backup(
    request: pytest.FixtureRequest, repositories: Repositories, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backup]:
    """Each kind of source; for restic the tree is what ``restic restore`` makes of the same snapshot."""
    name: str = request.param
    if name == "dir":
        source: Source = open_source(f"dir:{repositories.tree}", {})
        expected = repositories.tree
    else:
        repository = repositories.get(name)
        expected = repository.restored(tmp_path_factory.mktemp(name))
        source = open_source(repository.spec, repository.env)
    yield Backup(source, expected, name)
    source.close()


@pytest.fixture(scope="session")
def expected(repositories: Repositories) -> dict[bytes, object]:
    """The fingerprint of the tree that was backed up."""
    source = DirSource(str(repositories.tree))
    return trees.fingerprint(source, trees.nodes(source.walk(source.select("latest"))))


@pytest.fixture(scope="session")
def keys(repositories: Repositories) -> dict[str, MasterKeys]:
    """Master keys of repositories that damage tests copy: derived once, because each derivation takes half a second."""
    found = {}
    for name in ("v2",):
        store = location.parse(repositories.get(name).place, {}).open()
        found[name] = open_keys(store, PASSWORD.encode())
        store.close()
    return found


@pytest.fixture
def damaged(
    repositories: Repositories, keys: dict[str, MasterKeys], tmp_path: Path
) -> Iterator[Callable[[], tuple[Path, ResticSource]]]:
    """Makes a copy of the repository ``v2`` to be damaged, and an opened source on it that has read nothing yet."""
    with contextlib.ExitStack() as stack:

        def make() -> tuple[Path, ResticSource]:
            copy: Repository = repositories.get("v2").copy(tmp_path / f"copy{len(list(tmp_path.iterdir()))}")
            source = ResticSource(location.parse(copy.place, {}), keys["v2"])
            stack.callback(source.close)
            return tmp_path / copy.place, source

        yield make


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def forge(request: pytest.FixtureRequest, tmp_path: Path) -> Forge:
    """A writer of repositories that no honest restic would make."""
    return Forge(tmp_path / "repo", request.param)
