"""From what the user writes to a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from active_restore.errors import UsageError
from active_restore.source.dir import DirSource
from active_restore.source.restic import password
from active_restore.source.restic.repository import ResticSource
from active_restore.store import location
from active_restore.store.addresses import AddressBook
from active_restore.store.turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from active_restore.source.base import Source


def open_source(
    spec: str, env: Mapping[str, str], turnstile: Turnstile | None = None, book: AddressBook | None = None
) -> Source:
    """The source for ``dir:PATH`` or ``restic:REPOSITORY`` (restic's own spelling). ``env`` holds passwords and keys.

    ``turnstile`` limits the requests at a time to a remote one, ``book`` remembers where it is.
    Raises ``UsageError``, ``NoRepository``, ``WrongPassword``, ``RepositoryDamaged``, ``SourceUnavailable``.
    """
    scheme, colon, rest = spec.partition(":")
    if colon and rest and scheme == "dir":
        return DirSource.open(rest)
    if colon and rest and scheme == "restic":
        place = location.parse(rest, env)._replace(turnstile=turnstile or Turnstile(), book=book or AddressBook())
        return ResticSource.open(place, password.find(env))
    raise UsageError(f"unknown source {_shown(scheme, colon)!r}", "write dir:PATH or restic:REPOSITORY")


def attach(recipe: dict[str, Any], fds: Sequence[int]) -> Source:
    """A source in a worker process, from a ``Handover``: no key is derived and nothing is loaded."""
    if recipe["kind"] == "dir":
        return DirSource.attach(recipe)
    return ResticSource.attach(recipe, fds)


def _shown(scheme: str, colon: str) -> str:
    # Never the whole: a URL may hold a password.
    return f"{scheme[:40]}:..." if colon else scheme[:40]


def local_paths(url: str) -> list[str]:
    """Where a source lies on this machine; nothing for one behind a network."""
    path = url.partition(":")[2]
    return [path] if path.startswith("/") else []
