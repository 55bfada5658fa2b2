"""Where a repository lies, in restic's spelling: parsing it, and opening stores there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from active_restore.errors import NoRepository, UsageError
from active_restore.store.addresses import AddressBook
from active_restore.store.local import LocalStore
from active_restore.store.retry import RetryingStore
from active_restore.store.turnstile import LimitedStore, Turnstile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from active_restore.store.base import Store

_FOREIGN = ("sftp", "b2", "rclone", "gs", "azure", "swift")
_SUPPORTED = "supported are /path, local:/path, s3:https://host/bucket/prefix and rest:https://host/repository"
# What the object stores need of the environment; nothing else goes into a recipe.
_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "RESTIC_CACERT",
    "RESTIC_REST_USERNAME",
    "RESTIC_REST_PASSWORD",
)


class Location(NamedTuple):
    """A place. ``scheme`` is local, s3 or rest; ``address`` is a path or a URL without secrets; ``env`` holds them.

    ``turnstile`` limits requests to a remote one; ``book`` remembers where it was.
    """

    scheme: str
    address: str
    env: tuple[tuple[str, str], ...]
    turnstile: Turnstile = Turnstile()
    book: AddressBook = AddressBook()

    @property
    def url(self) -> str:
        """How people name it, without secrets."""
        return self.address if self.scheme == "local" else f"{self.scheme}:{self.address}"

    def open(self) -> Store:
        """A new connection. Nothing is asked of the server yet. Raises ``UsageError`` for what cannot be a server."""
        if self.scheme == "local":
            return LocalStore(self.address)
        # Imported here: those who restore from a local disk need not carry the network stack.
        from active_restore.store.found import open_found

        store = open_found(self.scheme, self.address, dict(self.env), self.book)
        # Inside: who pauses before trying again holds no connection.
        return RetryingStore(LimitedStore(store, self.turnstile) if self.turnstile.slots else store)

    def check(self) -> None:
        """Raises ``NoRepository`` where a local folder does not exist (later that would count as not mounted)."""
        if self.scheme == "local" and not os.path.isdir(self.address):
            raise NoRepository(f"there is no folder {self.address}", "check the path; is it mounted?")

    def recipe(self) -> dict[str, Any]:
        """Plain data for another process; holds secrets."""
        turnstile = list(self.turnstile.for_background())
        return {
            "scheme": self.scheme,
            "address": self.address,
            "env": [list(pair) for pair in self.env],
            "turnstile": turnstile,
            "addresses": [list(pair) for pair in self.book.read()],
        }

    @classmethod
    def from_recipe(cls, recipe: dict[str, Any]) -> Location:
        """The other end of ``recipe``."""
        env = tuple((name, value) for name, value in recipe["env"])
        book = AddressBook(known=tuple((name, address) for name, address in recipe["addresses"]))
        return cls(recipe["scheme"], recipe["address"], env, Turnstile(*recipe["turnstile"]), book)


def parse(repository: str, env: Mapping[str, str]) -> Location:
    """Understand restic's spelling of a repository. Raises ``UsageError`` with a hint."""
    scheme, colon, rest = repository.partition(":")
    if colon and scheme in ("s3", "rest"):
        secrets = {name: env[name] for name in _VARIABLES if env.get(name)}
        address = _s3_address(rest) if scheme == "s3" else _rest_address(rest, secrets)
        return Location(scheme, address, tuple(secrets.items()))
    if colon and scheme in _FOREIGN:
        raise UsageError(f"repositories of the kind {scheme}: are not supported", f"{_SUPPORTED}; or mount it")
    path = rest if colon and scheme == "local" else repository
    if not path or "\0" in path:
        raise UsageError("the place of the repository is missing", _SUPPORTED)
    if "://" in path:
        raise UsageError(f"unknown kind of repository {scheme}:", _SUPPORTED)
    return Location("local", os.path.abspath(path), ())


def _s3_address(rest: str) -> str:
    """``https://host/bucket/prefix``; restic also takes ``host/bucket`` and ``//host/bucket``."""
    address = rest if rest.startswith(("http://", "https://")) else "https://" + rest.removeprefix("s3://").lstrip("/")
    parts = urlsplit(address)
    if not parts.hostname or not parts.path.strip("/") or parts.username is not None:
        raise UsageError("an S3 repository is written s3:https://host/bucket/prefix", "credentials come from AWS_*")
    return address.rstrip("/")


def _rest_address(rest: str, secrets: dict[str, str]) -> str:
    """The URL without user and password; they move to ``secrets``."""
    try:
        parts = urlsplit(rest)
        port = parts.port
    except ValueError:
        raise UsageError("the URL of the REST server cannot be understood", _SUPPORTED) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("a REST repository is written rest:https://host:8000/repository", _SUPPORTED)
    if parts.username is not None:
        secrets["RESTIC_REST_USERNAME"] = unquote(parts.username)
        secrets["RESTIC_REST_PASSWORD"] = unquote(parts.password or "")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return urlunsplit((parts.scheme, host if port is None else f"{host}:{port}", parts.path.rstrip("/"), "", ""))
