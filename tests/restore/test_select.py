"""Patterns against a slow matcher that only knows single names, and against what restic's manual says."""

from __future__ import annotations

import fnmatch
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_restore.errors import UsageError
from active_restore.model import Kind, Node, Problem
from active_restore.restore.select import Selection


def directory(path: bytes) -> Node:
    return Node(path, Kind.DIR, 0o755)


def file(path: bytes) -> Node:
    return Node(path, Kind.FILE, 0o644)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.c", b"src/main.c", True),
        ("*.c", b"src/main.cc", False),
        ("*.c", b"x.c/below/it", True),
        ("src", b"deep/src/main.c", True),
        ("src", b"deep/srcs/main.c", False),
        ("/src", b"src/main.c", True),
        ("/src", b"deep/src/main.c", False),
        ("/src/*.c", b"src/a/b.c", False),
        ("/src/**/*.c", b"src/a/d/b.c", True),
        ("/src/**/*.c", b"src/b.c", True),
        ("src/**", b"src", True),
        ("src/", b"src/a", True),
        ("a/b", b"x/a/b/c", True),
        ("a/b", b"x/a/c/b", False),
        ("fo?", b"foo", True),
        ("fo?", b"fo/", False),
        ("fo?", "fo\u00e4".encode(), True),
        ("fo?", b"fo\xff", True),
        ("[a-c]x", b"bx", True),
        ("[!a-c]x", b"bx", False),
        ("[^a-c]x", b"dx", True),
        ("a[!b]c", b"a/c", False),
        ("[]x]", b"]", True),
        ("[a-]", b"-", True),
        (r"\*", b"*", True),
        (r"\*", b"a", False),
        (os.fsdecode(b"\xfe*"), b"\xfe\xff", True),
        ("a\nb", b"a\nb", True),
        ("*", b".hidden", True),
        ("/", b"a/b", True),
        ("**", b"a/b", True),
    ],
    ids=str,
)
def test_pattern(pattern: str, path: bytes, expected: bool) -> None:
    assert Selection(include=[pattern])(path) is expected
    assert Selection(exclude=[pattern])(path) is not expected


@pytest.mark.parametrize("pattern", ["", "[a", "[", "a\\", "[z-a]", "../x", "a[b\\"])
def test_bad_pattern(pattern: str) -> None:
    with pytest.raises(UsageError) as caught:
        Selection(include=[pattern])
    assert caught.value.hint


def test_exclude_wins() -> None:
    selection = Selection(include=["/usr"], exclude=["*.pyc"])
    assert selection(b"usr/lib/a.py")
    assert not selection(b"usr/lib/a.pyc")
    assert not selection(b"var")


def test_filter_keeps_parents_once_and_in_order() -> None:
    walk: list[Node | Problem] = [
        directory(b""),
        directory(b"a"),
        directory(b"a/b"),
        directory(b"a/c"),
        file(b"a/b/x.txt"),
        file(b"a/b/y.txt"),
        file(b"a/z.bin"),
        directory(b"d"),
        Problem(b"d/broken", 5, "tree is damaged"),
        file(b"a/c/w.txt"),
    ]
    paths = [entry.path for entry in Selection(include=["*.txt"]).filter(walk)]
    assert paths == [b"", b"a", b"a/b", b"a/b/x.txt", b"a/b/y.txt", b"d/broken", b"a/c", b"a/c/w.txt"]


def test_filter_excluded_directory_covers_what_is_below() -> None:
    below: list[Node | Problem] = [file(b"tmp/x"), Problem(b"tmp/y", 5, "")]
    walk = [directory(b""), directory(b"tmp"), *below, file(b"z")]
    assert [entry.path for entry in Selection(exclude=["/tmp"]).filter(walk)] == [b"", b"z"]


names = st.text(alphabet="ab*?", min_size=1, max_size=3)
patterns = st.builds(
    lambda anchor, parts: anchor + "/".join(parts), st.sampled_from(["", "/"]), st.lists(names, min_size=1, max_size=3)
)
plain_paths = st.lists(st.text(alphabet="ab", min_size=1, max_size=3), min_size=1, max_size=4)


def slow(parts: list[str], path: list[str]) -> bool:
    """Whether the pattern matches exactly this path from its beginning."""
    if not parts:
        return not path
    if parts[0] == "**":
        return any(slow(parts[1:], path[skipped:]) for skipped in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], parts[0]) and slow(parts[1:], path[1:])


@given(patterns, plain_paths)
def test_agrees_with_slow_matcher(pattern: str, path: list[str]) -> None:
    parts = [part for part in pattern.split("/") if part]
    starts = [0] if pattern.startswith("/") else range(len(path))
    expected = any(slow(parts, path[start:end]) for start in starts for end in range(start, len(path) + 1))
    assert Selection(include=[pattern])("/".join(path).encode()) is expected


names_of_files = st.binary(min_size=1).filter(lambda name: b"/" not in name and b"\0" not in name)


@given(st.lists(names_of_files, min_size=1, max_size=3))
def test_a_quoted_path_matches_itself(names: list[bytes]) -> None:
    path = b"/".join(names)
    quoted = "/" + os.fsdecode(b"".join(b"\\" + bytes([c]) if bytes([c]) in b"*?[\\" else bytes([c]) for c in path))
    if b".." in names or names == [b"."]:
        return
    cleaned = b"/".join(name for name in names if name != b".")
    assert Selection(include=[quoted])(cleaned)
