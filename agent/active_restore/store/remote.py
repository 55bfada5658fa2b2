"""Stores behind HTTP: S3 and REST servers, by way of obstore."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import HTTPStore, S3Store

from active_restore.errors import ActiveRestoreError, SourceUnavailable, UsageError
from active_restore.store.base import AccessDenied, Entry, ObjectNotFound, ObjectTruncated
from active_restore.store.restlist import RestListing

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.store.base import Store
    from active_restore.store.detour import Detour

_CONNECT_TIMEOUT = timedelta(seconds=10)
# For a whole request: 16 MiB at 150 kB/s.
_TIMEOUT = timedelta(seconds=120)
# One place decides about retries, and it is RetryingStore.
_NO_RETRY: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
_DENIED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
# A missing object is Python's own FileNotFoundError to obstore.
_FAULTS = (exceptions.BaseError, OSError)
_MESSAGE_CHARS = 160
_HINT = "check network and server"


class RemoteStore:
    """Objects of an obstore store; ``lister`` makes the listing, because HTTP knows none of its own."""

    remote = True

    def __init__(self, url: str, objects: S3Store | HTTPStore, lister: Callable[[str], list[Entry]], hint: str = _HINT) -> None:
        self.url = url
        self._objects = objects
        self._list = lister
        self._hint = hint

    def get(self, name: str, limit_bytes: int) -> memoryview:
        """See ``Store.get``."""
        try:
            answer = obstore.get(self._objects, name)
            size = answer.meta["size"]
            if size > limit_bytes:
                raise ObjectTruncated(f"{name} is {size} bytes long, more than the {limit_bytes} it may have")
            return memoryview(answer.bytes())
        except _FAULTS as error:
            raise self._translated(error, name) from None

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        """See ``Store.get_range``."""
        if not length:
            return memoryview(b"")
        try:
            data = memoryview(obstore.get_range(self._objects, name, start=offset, length=length))
        except _FAULTS as error:
            raise self._out_of_range(error, name, offset + length) from None
        if len(data) != length:
            raise ObjectTruncated(f"{name} ends before byte {offset + length}")
        return data

    def list(self, folder: str) -> list[Entry]:
        """See ``Store.list``."""
        try:
            return sorted(self._list(folder))
        except _FAULTS as error:
            raise self._translated(error, folder) from None

    def size(self, name: str) -> int:
        """See ``Store.size``."""
        try:
            return obstore.head(self._objects, name)["size"]
        except _FAULTS as error:
            raise self._translated(error, name) from None

    def close(self) -> None:
        """See ``Store.close``: obstore closes its connections with the last reference."""

    def _out_of_range(self, error: Exception, name: str, end: int) -> ActiveRestoreError:
        """A range behind the end is an error of the request to some servers: ask for the size before believing that."""
        fault = self._translated(error, name)
        if type(fault) is SourceUnavailable and self.size(name) < end:
            return ObjectTruncated(f"{name} ends before byte {end}")
        return fault

    def _translated(self, error: Exception, name: str) -> ActiveRestoreError:
        if isinstance(error, (exceptions.NotFoundError, FileNotFoundError)):
            return ObjectNotFound(f"{name} does not exist in {self.url}")
        if isinstance(error, _DENIED):
            return AccessDenied(f"{self.url} refuses access to {name}", "check user, password and keys (AWS_* for S3)")
        hint = "check its certificate; RESTIC_CACERT names the authority" if "ertificate" in str(error) else self._hint
        return SourceUnavailable(f"{self.url} cannot be reached: {_reason(error)}", hint)


def open_remote(scheme: str, address: str, env: dict[str, str], detour: Detour | None = None) -> Store:
    """A store for ``s3`` or ``rest``; ``address`` is a URL without secrets; by a ``detour``, if there is one.

    Raises ``UsageError``.
    """
    try:
        return _open_s3(address, env, detour) if scheme == "s3" else _open_rest(address, env, detour)
    except (*_FAULTS, ValueError) as error:
        raise UsageError(f"{scheme}:{address} cannot be used: {_reason(error)}") from None


def _open_s3(address: str, env: dict[str, str], detour: Detour | None) -> RemoteStore:
    parts = urlsplit(address)
    bucket, _, prefix = parts.path.strip("/").partition("/")
    config: dict[str, Any] = {
        "endpoint": f"{parts.scheme}://{parts.netloc}",
        "region": env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
        "virtual_hosted_style_request": False,
        "client_options": _client(parts.scheme, env, {}, detour),
        "retry_config": _NO_RETRY,
    }
    if key := env.get("AWS_ACCESS_KEY_ID"):
        config |= {"access_key_id": key, "secret_access_key": env.get("AWS_SECRET_ACCESS_KEY", "")}
        if token := env.get("AWS_SESSION_TOKEN"):
            config["session_token"] = token
    objects = S3Store(bucket, prefix=prefix or None, **config)

    def listing(folder: str) -> list[Entry]:
        pages = obstore.list(objects, prefix=f"{folder}/")
        return [Entry(one["path"].rpartition("/")[2], one["size"]) for page in pages for one in page]

    hint = _HINT if key else f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; {_HINT}"
    return RemoteStore(f"s3:{address}", objects, listing, hint)


def _open_rest(address: str, env: dict[str, str], detour: Detour | None) -> RemoteStore:
    headers = {}
    password = env.get("RESTIC_REST_PASSWORD", "")
    if user := env.get("RESTIC_REST_USERNAME"):
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    url = f"rest:{address}"
    options = _client(urlsplit(address).scheme, env, headers, detour)
    objects = HTTPStore(address, client_options=options, retry_config=_NO_RETRY)
    listing = RestListing(url, address, headers, env.get("RESTIC_CACERT", ""), detour)
    return _FlatStore(url, objects, listing.entries)


class _FlatStore(RemoteStore):
    """A REST server keeps packs directly below ``data/``: the folder of two digits is left out of names."""

    def get(self, name: str, limit_bytes: int) -> memoryview:
        return super().get(_flat(name), limit_bytes)

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        return super().get_range(_flat(name), offset, length)

    def size(self, name: str) -> int:
        return super().size(_flat(name))


def _flat(name: str) -> str:
    first, _, rest = name.partition("/")
    return f"{first}/{rest.rpartition('/')[2]}" if rest else name


def _client(scheme: str, env: dict[str, str], headers: dict[str, str], detour: Detour | None) -> Any:
    options: dict[str, Any] = {
        "allow_http": scheme == "http",
        "connect_timeout": _CONNECT_TIMEOUT,
        "timeout": _TIMEOUT,
        "user_agent": "active-restore",
    }
    if detour is not None:
        options["proxy_url"] = detour.url
    if headers:
        options["default_headers"] = headers
    if path := env.get("RESTIC_CACERT"):
        with open(path, "rb") as file:
            options["root_certificate"] = file.read()
    return options


def _reason(error: Exception) -> str:
    """The first line of a message: what follows is the answer of the server and the internals of the client."""
    return str(error).partition("\n")[0][:_MESSAGE_CHARS]
