"""The settings for people: every key, no secret."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from active_restore.settings.tables import Settings

_USER = re.compile(r"://[^/@]*:[^/@]*@")


def tables(settings: Settings) -> dict[str, dict[str, Any]]:
    """Tables by name, defaults filled in. A password in a source's URL (restic takes it there) becomes ``***``."""
    every = settings.model_dump(mode="json")
    named = {f"restores.{name}": settings.named(name) for name in every.pop("restores")}
    every.update({name: one.model_dump(mode="json") for name, one in named.items() if one is not None})
    return {name: {key: _mask(value) for key, value in table.items()} for name, table in every.items()}


def _mask(value: object) -> object:
    return _USER.sub("://***@", value) if isinstance(value, str) else value
