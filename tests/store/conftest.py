"""One set of objects in each kind of store."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import obstore
import pytest
from obstore.store import S3Store

from active_restore.store import location
from tests.store.servers import PASSWORD, S3_ENV, USER, RestServer, rest_server, s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from active_restore.store.base import Store

PACK = "ab" * 32
OBJECTS = {
    "config": b"configuration",
    f"data/ab/{PACK}": bytes(range(256)) * 400,
    f"data/cd/{'cd' * 32}": b"",
    f"keys/{'11' * 32}": b"key one",
    f"keys/{'22' * 32}": b"key number two",
}


@pytest.fixture(scope="session")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestServer]:
    root = tmp_path_factory.mktemp("rest")
    for name, content in OBJECTS.items():
        first, _, rest_of_name = name.partition("/")
        write(root / "repo", f"{first}/{rest_of_name.rpartition('/')[2]}" if rest_of_name else name, content)
    with rest_server(root) as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["local", "s3", "rest-v2", "rest-v1"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> location.Location:
    """A location that holds ``OBJECTS``."""
    if request.param == "local":
        for name, content in OBJECTS.items():
            write(tmp_path / "repo", name, content)
        return location.parse(str(tmp_path / "repo"), {})
    if request.param == "s3":
        return s3_location(request.getfixturevalue("s3"))
    server: RestServer = request.getfixturevalue("rest")
    server.with_version_2 = request.param == "rest-v2"
    return rest_location(server)


@pytest.fixture
def store(place: location.Location) -> Iterator[Store]:
    opened = place.open()
    yield opened
    opened.close()


def s3_location(url: str) -> location.Location:
    """A bucket of ``OBJECTS`` below a prefix."""
    make_bucket(url, "backups")
    objects = S3Store(
        "backups",
        prefix="some/prefix",
        endpoint=url,
        access_key_id=S3_ENV["AWS_ACCESS_KEY_ID"],
        secret_access_key=S3_ENV["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        client_options={"allow_http": True},
    )
    for name, content in OBJECTS.items():
        obstore.put(objects, name, content)
    return location.parse(f"s3:{url}/backups/some/prefix", S3_ENV)


def rest_location(server: RestServer) -> location.Location:
    """The repository of a REST server."""
    return location.parse(f"rest:http://{USER}:{quote(PASSWORD, safe='')}@{server.address}/repo", {})


def make_bucket(url: str, name: str) -> None:
    """Create a bucket: one PUT, which moto takes unsigned."""
    import urllib.request

    with urllib.request.urlopen(urllib.request.Request(f"{url}/{name}", method="PUT")):
        pass


def write(root: Path, name: str, content: bytes) -> None:
    """An object as a file."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
