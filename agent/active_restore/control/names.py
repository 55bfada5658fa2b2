"""File names in text: readable for people, exact for machines, harmless for terminals."""

from __future__ import annotations

import base64
import os
from typing import NotRequired, TypedDict


class PathFields(TypedDict):
    """A path in JSON. ``path_b64`` is there only where ``path`` alone would not give the bytes back."""

    path: str
    path_b64: NotRequired[str]


def path_fields(path: bytes) -> PathFields:
    """``path`` as JSON: UTF-8 where it is, otherwise with ``\\xNN`` for the bytes that are not, and base64 beside it."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {"path": path.decode("utf-8", "backslashreplace"), "path_b64": base64.b64encode(path).decode()}


def plain(text: str) -> str:
    """Text of ours that may hold undecodable bytes (``os.fsdecode``), as text that any encoder takes."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def shown(name: bytes | str) -> str:
    """A name for a terminal: no control character gets through, so no file name can move the cursor or forge a line."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
