"""Repositories of the real restic, on the local disk."""

from __future__ import annotations

from typing import NoReturn

import pytest

from tests.source.repositories import Repositories


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Repositories:
    """Each is made when it is first asked for. What needs a server is tested in tests/source."""
    return Repositories(tmp_path_factory.mktemp("restic"), _no_server, _no_server)


def _no_server() -> NoReturn:
    raise NotImplementedError
