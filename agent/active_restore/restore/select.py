"""Which paths of a snapshot are restored: include and exclude patterns as restic has them.

``*`` and ``?`` match within one name, ``[a-z]`` and ``[!a-z]`` one character of it, ``**`` any number of names (none,
too), a backslash takes the next character literally. A leading ``/`` anchors a pattern at the root of the restore, any
other matches at any depth. A directory that matches covers everything below it. An exclusion wins over an inclusion.
(restic manual, "Excluding Files"; Go ``path/filepath.Match`` for the classes.)
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from active_restore.errors import UsageError
from active_restore.model import Kind, Node, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ANY_NAMES = "**"


class Selection:
    """Compiled once, asked a million times. Patterns are text of the command line; paths have no leading slash."""

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        """Raises ``UsageError`` for a pattern that cannot be understood."""
        self._include = _compile(include)
        self._exclude = _compile(exclude)

    def __call__(self, path: bytes) -> bool:
        """Whether this path itself is wanted; the parents of what is wanted are not told apart here, see ``filter``."""
        text = _text(path)
        if self._exclude is not None and self._exclude.search(text):
            return False
        return self._include is None or self._include.search(text) is not None

    def filter(self, entries: Iterable[Node | Problem]) -> Iterator[Node | Problem]:
        """Let through what is wanted and, before it, the directories that lead to it, each once; always the root.

        Parents come before children in ``entries``. Directories that nothing wanted was found below yet are held back,
        so memory grows with their number only. A problem is kept unless it is excluded: what is wanted may lie below.
        """
        held: dict[bytes, Node] = {}
        for entry in entries:
            if self(entry.path) or not entry.path:
                yield from _parents(entry.path, held)
                yield entry
            elif self._exclude is not None and self._exclude.search(_text(entry.path)):
                continue
            elif isinstance(entry, Problem):
                yield entry
            elif entry.kind is Kind.DIR:
                held[entry.path] = entry


def _parents(path: bytes, held: dict[bytes, Node]) -> Iterator[Node]:
    """Give back the held directories above ``path``, the highest first."""
    if not held:
        return
    end = path.find(b"/")
    while end >= 0:
        node = held.pop(path[:end], None)
        if node is not None:
            yield node
        end = path.find(b"/", end + 1)


def _text(path: bytes) -> str:
    """Characters, so that ``?`` takes a whole one; bytes that are not UTF-8 become one character each."""
    return path.decode("utf-8", "surrogateescape")


def _compile(patterns: Iterable[str]) -> re.Pattern[str] | None:
    """One expression for all patterns: a match ends where a name ends, so it covers what lies below, too."""
    anchored: list[str] = []
    floating: list[str] = []
    for pattern in patterns:
        (anchored if pattern.startswith("/") else floating).append(_translate(_text(os.fsencode(pattern))))
    branches = []
    if anchored:
        branches.append(r"\A(?:" + "|".join(anchored) + ")")
    if floating:
        branches.append(r"(?:\A|(?<=/))(?:" + "|".join(floating) + ")")
    return re.compile("(?:" + "|".join(branches) + r")(?:\Z|(?=/))", re.DOTALL) if branches else None


def _translate(pattern: str) -> str:
    if not pattern:
        raise UsageError("a pattern of --include or --exclude is empty", "leave the option out to restore everything")
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    if ".." in names:
        raise UsageError(f"pattern {pattern!r} has '..' in it", "paths are matched from the root of the snapshot downwards")
    while names and names[-1] == _ANY_NAMES:
        names.pop()  # "a/**" matches "a", which covers everything below
    if not names:
        return "[^/]*"  # "/" and "**": everything
    above = ["(?:[^/]+/)*" if name == _ANY_NAMES else _name(name, pattern) + "/" for name in names[:-1]]
    return "".join(above) + _name(names[-1], pattern)


def _name(name: str, pattern: str) -> str:
    """One name of a pattern as an expression that never crosses a slash."""
    out = []
    position = 0
    while position < len(name):
        character = name[position]
        position += 1
        if character == "*":
            out.append("[^/]*")
        elif character == "?":
            out.append("[^/]")
        elif character == "[":
            expression, position = _class(name, position, pattern)
            out.append(expression)
        else:
            if character == "\\":
                character, position = _literal(name, position, pattern)
            out.append(re.escape(character))
    return "".join(out)


def _class(name: str, position: int, pattern: str) -> tuple[str, int]:
    """A ``[...]`` whose bracket was read already; gives the expression and where it ends."""
    negated = name[position : position + 1] in ("!", "^")
    position += negated
    members = ""
    while not members or name[position : position + 1] != "]":
        low, position = _member(name, position, pattern)
        high = low
        if name[position : position + 1] == "-" and name[position + 1 : position + 2] != "]":
            high, position = _member(name, position + 1, pattern)
        if low > high:
            raise UsageError(f"pattern {pattern!r} has a range that runs backwards", "write the lower end first: [a-z]")
        members += f"\\U{ord(low):08x}-\\U{ord(high):08x}"
    # The lookahead keeps a negated class, or a range that holds it, from matching the slash.
    return f"(?!/)[{'^' if negated else ''}{members}]", position + 1


def _member(name: str, position: int, pattern: str) -> tuple[str, int]:
    if position >= len(name):
        raise UsageError(f"pattern {pattern!r} has a [ without a ]", "write \\[ for a bracket itself")
    if name[position] == "\\":
        return _literal(name, position + 1, pattern)
    return name[position], position + 1


def _literal(name: str, position: int, pattern: str) -> tuple[str, int]:
    """The character after a backslash."""
    if position >= len(name):
        raise UsageError(f"pattern {pattern!r} has a backslash before nothing", "write \\\\ for a backslash itself")
    return name[position], position + 1
