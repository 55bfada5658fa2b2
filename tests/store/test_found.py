"""Servers whose name cannot be looked up any more: they are found by the address that they had."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from active_restore.errors import SourceUnavailable
from active_restore.store import addresses, location, retry
from active_restore.store.addresses import AddressBook, Name
from active_restore.store.base import AccessDenied, ObjectNotFound
from active_restore.store.detour import Detour
from tests.kernel.waiting import wait_until
from tests.store.conftest import OBJECTS, PACK, rest_location, s3_location
from tests.store.servers import NOWHERE, PASSWORD, USER, RestServer, authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from active_restore.store.base import Store

BIG = f"data/ab/{PACK}"
KNOWN = AddressBook(known=((NOWHERE, "127.0.0.1"),))


@pytest.fixture
def secure(rest: RestServer, tmp_path: Path) -> Iterator[location.Location]:
    """The REST server behind TLS, by a name."""
    certificate, key = authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = RestServer(rest.root, tls=context)
    spec = f"rest:https://{USER}:{quote(PASSWORD, safe='')}@{NOWHERE}:{server.server_address[1]}/repo"
    yield location.parse(spec, {"RESTIC_CACERT": str(certificate)})
    server.stop()


@pytest.fixture(params=["s3", "rest", "tls"])
def lost(request: pytest.FixtureRequest) -> location.Location:
    """A location that holds ``OBJECTS``, by a name that nobody knows."""
    if request.param == "tls":
        found: location.Location = request.getfixturevalue("secure")
        return found
    if request.param == "s3":
        place = s3_location(request.getfixturevalue("s3"))
    else:
        place = rest_location(request.getfixturevalue("rest"))
    return place._replace(address=place.address.replace("127.0.0.1", NOWHERE))


@contextlib.contextmanager
def _once(place: location.Location) -> Iterator[Store]:
    """Without another try."""
    with contextlib.closing(place.open()) as store:
        yield retry.RetryingStore(getattr(store, "_store"), 1)  # noqa: B009


def test_all_requests_reach_the_address_that_is_remembered(lost: location.Location) -> None:
    store = lost._replace(book=KNOWN).open()
    for _ in range(2):
        assert bytes(store.get("config", 100)) == OBJECTS["config"]
        assert bytes(store.get_range(BIG, 100, 5000)) == OBJECTS[BIG][100:5100]
        assert store.size(BIG) == len(OBJECTS[BIG])
        assert [entry.name for entry in store.list("keys")] == ["11" * 32, "22" * 32]
        with pytest.raises(ObjectNotFound):
            store.size(f"data/ef/{'ef' * 32}")
    other = location.Location.from_recipe(lost._replace(book=KNOWN).recipe()).open()
    assert bytes(other.get("config", 100)) == OBJECTS["config"]
    other.close()
    store.close()


def test_nothing_is_remembered(lost: location.Location) -> None:
    with _once(lost) as store, pytest.raises(SourceUnavailable):
        store.get("config", 100)


def test_a_wrong_password_is_refused_there_too(rest: RestServer) -> None:
    place = location.parse(f"rest:http://reader:wrong@{NOWHERE}:{rest.server_address[1]}/repo", {})._replace(book=KNOWN)
    with contextlib.closing(place.open()) as store:
        for ask in (store.size, store.list):
            with pytest.raises(AccessDenied):
                ask("keys")


def test_nobody_is_at_the_address(lost: location.Location) -> None:
    """127.0.0.2 refuses: the next address is tried, and where there is none, the server is away."""
    alone = AddressBook(known=((NOWHERE, "127.0.0.2"),))
    with _once(lost._replace(book=alone)) as store, pytest.raises(SourceUnavailable):
        store.get("config", 100)
    both = AddressBook(known=(*alone.known, *KNOWN.known))
    with _once(lost._replace(book=both)) as store:
        assert bytes(store.get("config", 100)) == OBJECTS["config"]


def test_addresses_are_remembered_and_the_name_is_used_again(
    rest: RestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second server has the name from then on, and only the first is at the address that was remembered."""
    monkeypatch.setattr(addresses, "_AGAIN_S", 0)
    book = AddressBook(str(tmp_path / "addresses"))
    place = rest_location(rest)
    place = place._replace(address=place.address.replace("127.0.0.1", "localhost"), book=book)
    with contextlib.closing(place.open()) as store:
        assert bytes(store.get("config", 100)) == OBJECTS["config"]
    assert "127.0.0.1" in AddressBook(str(tmp_path / "addresses")).of("localhost")
    assert book.of("elsewhere") == ()
    store = place.open()
    answers, real = threading.Event(), socket.getaddrinfo

    def asked(*words: Any, **more: Any) -> Any:
        if not answers.is_set():
            raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")
        return real(*words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    rest.refusals = 1
    assert bytes(store.get("config", 100)) == OBJECTS["config"]
    found = getattr(store, "_store")  # noqa: B009
    assert found._is_lost
    answers.set()

    def by_name() -> bool:
        assert bytes(store.get("config", 100)) == OBJECTS["config"]
        return not found._is_lost

    wait_until(by_name, "the name is looked up again")
    store.close()


def test_a_name_server_that_says_nothing_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: silent.wait(60) and [])
    name = Name("somewhere", ("127.0.0.1",))
    assert not name.look_up(0.01)
    assert not name.is_back()
    silent.set()
    assert name.addresses == ("127.0.0.1",)


@pytest.mark.parametrize("text", ["", "[]", "{", '[["a"]]', '[["a", "no address"]]', "7", '[["a", [1]]]'])
def test_a_damaged_book_is_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "addresses").write_text(text)
    book = AddressBook(str(tmp_path / "addresses"))
    assert book.of("a") == ()
    book.note("a", ("127.0.0.1", "::1"))
    assert book.of("a") == ("127.0.0.1", "::1")
    assert json.loads((tmp_path / "addresses").read_text())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", ""])
def test_an_address_is_not_looked_up(host: str) -> None:
    assert not addresses.is_looked_up(host)


def test_where_there_is_a_proxy_it_looks_up_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert addresses.is_looked_up(NOWHERE)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert not addresses.is_looked_up(NOWHERE)


@pytest.mark.parametrize(
    "said",
    [b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT a:443 HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\n\r\n"],
    ids=["nobody", "wrong"],
)
def test_the_detour_is_not_for_strangers(rest: RestServer, said: bytes) -> None:
    detour = Detour(rest.server_address[1], lambda: ("127.0.0.1",))
    detour.open()
    with socket.create_connection(detour.address) as stranger:
        stranger.sendall(said)
        assert stranger.makefile("rb").read().startswith(b"HTTP/1.1 407 ")
    detour.close()
