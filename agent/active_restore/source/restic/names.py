"""File names as restic stores them: quoted with Go's ``strconv.Quote`` inside a JSON string.

Source: restic ``internal/data/node.go`` (MarshalJSON), Go ``strconv/quote.go`` (UnquoteChar).
"""

from __future__ import annotations

import re
import sys

_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.)|\Z)", re.DOTALL)
_SIMPLE = {
    b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v", b"\\": b"\\", b'"': b'"',
}  # fmt: skip


def unquote(quoted: str) -> bytes:
    """The bytes of a name. Raises ``ValueError`` for what Go would refuse to unquote."""
    raw = quoted.encode()
    if b"\\" not in raw and b'"' not in raw and b"\n" not in raw:
        return raw
    plain = _ESCAPE.sub(b"", raw)
    if b'"' in plain or b"\n" in plain:
        raise ValueError("unescaped quote or line feed in a quoted name")
    return _ESCAPE.sub(_replace, raw)


def _replace(match: re.Match[bytes]) -> bytes:
    hexadecimal, short, long, octal, simple = match.groups()
    if hexadecimal is not None:
        return bytes((int(hexadecimal, 16),))
    if short is not None or long is not None:
        # Surrogates and numbers above U+10FFFF fail here, as in Go.
        number = int(short or long, 16)
        if number > sys.maxunicode:
            raise ValueError("no character has that number")
        return chr(number).encode()
    if octal is not None:
        return bytes((int(octal, 8),))
    if simple not in _SIMPLE:
        raise ValueError("unknown escape in a quoted name")
    return _SIMPLE[simple]
