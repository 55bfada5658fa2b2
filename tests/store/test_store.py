"""The contract of stores, on each implementation."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from active_restore.errors import SourceUnavailable, UsageError
from active_restore.store import location, retry
from active_restore.store.base import AccessDenied, Entry, ObjectNotFound, ObjectTruncated
from active_restore.store.local import MAX_DESCRIPTORS, LocalStore
from tests.store.conftest import OBJECTS, PACK, rest_location, write
from tests.store.servers import PASSWORD, S3_ENV, USER, RestServer, authority, unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from active_restore.store.base import Store

BIG = f"data/ab/{PACK}"


class TestContract:
    @pytest.mark.parametrize("name", OBJECTS, ids=lambda name: str(name)[:8])
    def test_get_gives_the_whole_object(self, store: Store, name: str) -> None:
        assert bytes(store.get(name, 1 << 20)) == OBJECTS[name]

    @pytest.mark.parametrize("name", OBJECTS, ids=lambda name: str(name)[:8])
    def test_size(self, store: Store, name: str) -> None:
        assert store.size(name) == len(OBJECTS[name])

    @pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 102400), (100, 5000), (102399, 1), (7, 0)])
    def test_range_is_exact(self, store: Store, offset: int, length: int) -> None:
        assert bytes(store.get_range(BIG, offset, length)) == OBJECTS[BIG][offset : offset + length]

    @pytest.mark.parametrize(("offset", "length"), [(0, 102401), (102399, 2), (102400, 1), (1 << 30, 10)])
    def test_range_behind_the_end(self, store: Store, offset: int, length: int) -> None:
        with pytest.raises(ObjectTruncated):
            store.get_range(BIG, offset, length)

    def test_list_at_any_depth(self, store: Store) -> None:
        assert [entry.name for entry in store.list("data")] == [PACK, "cd" * 32]
        assert [entry.name for entry in store.list("keys")] == ["11" * 32, "22" * 32]

    def test_list_tells_sizes_or_that_it_does_not_know(self, store: Store, place: location.Location) -> None:
        known = place.scheme != "rest" or store.list("keys")[0].size_bytes != -1
        expected = [Entry("11" * 32, 7), Entry("22" * 32, 14)]
        assert store.list("keys") == (expected if known else [Entry(one.name, -1) for one in expected])

    def test_folder_that_does_not_exist_is_empty(self, store: Store) -> None:
        assert store.list("index") == []

    def test_missing_object(self, store: Store) -> None:
        name = f"data/ef/{'ef' * 32}"
        with pytest.raises(ObjectNotFound):
            store.get(name, 100)
        with pytest.raises(ObjectNotFound):
            store.get_range(name, 0, 10)
        with pytest.raises(ObjectNotFound):
            store.size(name)

    def test_get_refuses_more_than_its_limit(self, store: Store) -> None:
        with pytest.raises(ObjectTruncated):
            store.get(BIG, 1000)

    def test_recipe_opens_the_same_place(self, place: location.Location) -> None:
        other = location.Location.from_recipe(place.recipe())
        assert other == place
        opened = other.open()
        assert bytes(opened.get("config", 100)) == OBJECTS["config"]
        opened.close()

    def test_url_holds_no_secret(self, place: location.Location, store: Store) -> None:
        for text in (place.url, store.url):
            assert PASSWORD not in text
            assert "reader" not in text
            assert S3_ENV["AWS_SECRET_ACCESS_KEY"] not in text


class TestLocal:
    def test_descriptors_are_bounded_and_given_back(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        before = len(os.listdir("/proc/self/fd"))
        for number in range(MAX_DESCRIPTORS + 50):
            write(tmp_path, f"f{number}", b"x%d" % number)
            assert bytes(store.get_range(f"f{number}", 0, 2)) == b"x%d" % (number // 10 ** (len(str(number)) - 1))
        assert len(os.listdir("/proc/self/fd")) - before <= MAX_DESCRIPTORS
        store.close()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_store_that_vanished_is_unavailable_and_comes_back(self, tmp_path: Path) -> None:
        write(tmp_path / "repo", "config", b"1")
        store = LocalStore(str(tmp_path / "repo"))
        (tmp_path / "repo").rename(tmp_path / "gone")
        with pytest.raises(SourceUnavailable):
            store.size("config")
        with pytest.raises(SourceUnavailable):
            store.get_range("config", 0, 1)
        with pytest.raises(SourceUnavailable):
            store.list("data")
        (tmp_path / "gone").rename(tmp_path / "repo")
        assert bytes(store.get("config", 10)) == b"1"
        store.close()

    def test_a_truncated_file_that_was_replaced_is_opened_anew(self, tmp_path: Path) -> None:
        write(tmp_path, "pack", b"12345")
        store = LocalStore(str(tmp_path))
        with pytest.raises(ObjectTruncated):
            store.get_range("pack", 0, 10)
        write(tmp_path, "new", b"1234567890")
        (tmp_path / "new").rename(tmp_path / "pack")
        assert bytes(store.get_range("pack", 0, 10)) == b"1234567890"
        store.close()


class _Flaky:
    """A store of one object that cannot be reached the first ``failures`` times."""

    url = "flaky"
    remote = True

    def __init__(self, failures: int, error: Exception) -> None:
        self.calls = 0
        self._failures = failures
        self._error = error

    def get(self, name: str, limit_bytes: int) -> memoryview:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return memoryview(name.encode()[:limit_bytes])

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        return self.get(name, length)[offset:]

    def list(self, folder: str) -> list[Entry]:
        return [Entry(folder, len(self.get(folder, 1)))]

    def size(self, name: str) -> int:
        return len(self.get(name, 100))

    def close(self) -> None:
        self.calls = 0


class TestRetry:
    def test_tries_again_with_growing_pauses(self) -> None:
        pauses: list[float] = []
        store = retry.RetryingStore(_Flaky(3, SourceUnavailable("away")), 4, pauses.append)
        assert bytes(store.get("name", 9)) == b"name"
        assert len(pauses) == 3
        assert all(0 < pause <= retry.MAX_PAUSE_S for pause in pauses)
        assert pauses[2] > pauses[0]

    def test_gives_up(self) -> None:
        flaky = _Flaky(99, SourceUnavailable("away"))
        with pytest.raises(SourceUnavailable):
            retry.RetryingStore(flaky, 4, lambda _: None).get("name", 9)
        assert flaky.calls == 4

    @pytest.mark.parametrize("error", [ObjectNotFound("no"), ObjectTruncated("short"), AccessDenied("no")], ids=repr)
    def test_what_is_final_is_not_tried_again(self, error: Exception) -> None:
        flaky = _Flaky(99, error)
        with pytest.raises(type(error)):
            retry.RetryingStore(flaky, 4, lambda _: None).get("name", 9)
        assert flaky.calls == 1


class TestServers:
    @pytest.fixture
    def server(self, rest: RestServer) -> Iterator[RestServer]:
        rest.with_version_2 = True
        yield rest
        rest.refusals, rest.garbled = 0, False

    def test_an_overloaded_server_is_asked_again(self, server: RestServer) -> None:
        store = rest_location(server).open()
        server.refusals = 1
        assert bytes(store.get("config", 100)) == OBJECTS["config"]
        server.refusals = 1
        assert len(store.list("keys")) == 2
        assert server.refusals == 0

    def test_packs_of_a_rest_server_lie_flat(self, server: RestServer) -> None:
        server.requests.clear()
        rest_location(server).open().get_range(BIG, 0, 5)
        assert server.requests == [f"GET /repo/data/{PACK}"]

    @pytest.mark.parametrize("who", ["", "reader:wrong@"], ids=["nobody", "wrong"])
    def test_wrong_password_is_refused_at_once_and_not_shown(self, server: RestServer, who: str) -> None:
        store = location.parse(f"rest:http://{who}{server.address}/repo", {}).open()
        server.requests.clear()
        for ask in (lambda: store.get("config", 9), lambda: store.size("config"), lambda: store.list("keys")):
            with pytest.raises(AccessDenied) as caught:
                ask()
            assert caught.value.hint
            assert "wrong" not in f"{caught.value} {caught.value.hint}"
        assert len(server.requests) == 3

    def test_nobody_listens(self) -> None:
        port = unused_port()
        for spec, env in ((f"s3:http://127.0.0.1:{port}/b/p", S3_ENV), (f"rest:http://u:hidden@127.0.0.1:{port}/r", {})):
            inner = location.parse(spec, env).open()
            store = retry.RetryingStore(getattr(inner, "_store"), 2, lambda _: None)  # noqa: B009
            for ask in (store.size, store.list):
                with pytest.raises(SourceUnavailable) as caught:
                    ask("keys")
                shown = f"{caught.value} {caught.value.hint}"
                assert not isinstance(caught.value, AccessDenied)
                assert "hidden" not in shown
                assert S3_ENV["AWS_SECRET_ACCESS_KEY"] not in shown

    def test_own_certificate_authority(self, server: RestServer, tmp_path: Path) -> None:
        certificate, key = authority(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        secure = RestServer(server.root, tls=context)
        try:
            spec = f"rest:https://{USER}:{quote(PASSWORD, safe='')}@{secure.address}/repo"
            store = location.parse(spec, {"RESTIC_CACERT": str(certificate)}).open()
            assert bytes(store.get("config", 100)) == OBJECTS["config"]
            assert len(store.list("keys")) == 2
            stranger = retry.RetryingStore(location.parse(spec, {}).open(), 1)
            for ask in (stranger.size, stranger.list):
                with pytest.raises(SourceUnavailable) as caught:
                    ask("keys")
                assert "RESTIC_CACERT" in caught.value.hint
        finally:
            secure.stop()

    def test_certificate_authority_that_is_missing(self) -> None:
        with pytest.raises(UsageError):
            location.parse("rest:https://localhost/x", {"RESTIC_CACERT": "/nonexistent"}).open()

    def test_something_else_than_a_rest_server(self, server: RestServer) -> None:
        server.garbled = True
        store = retry.RetryingStore(rest_location(server).open(), 1)
        with pytest.raises(SourceUnavailable, match="no REST server"):
            store.list("keys")

    def test_missing_bucket(self, s3: str) -> None:
        store = location.parse(f"s3:{s3}/nobucket/x", S3_ENV).open()
        with pytest.raises(ObjectNotFound):
            store.get("config", 100)
