"""Repositories that lie: what is wrong becomes a problem of its place, the rest goes on, and memory stays bounded."""

from __future__ import annotations

import errno
import json
import resource
from typing import TYPE_CHECKING, Any

import pytest

from active_restore.errors import NoRepository, RepositoryDamaged, SnapshotError, WrongPassword
from active_restore.model import Kind
from active_restore.source.open import open_source
from active_restore.source.restic import tree as trees_module
from active_restore.source.restic import walk as walk_module
from tests.source import trees
from tests.source.forge import Forge, node, seal
from tests.source.walking import walked

if TYPE_CHECKING:
    from pathlib import Path


BAD_NAMES = (
    "",
    ".",
    "..",
    "a/b",
    "/etc",
    "../../x",
    "nul\\x00",
    "x" * 256,
    "bad\\q",
    'quo"te',
    "end\\",
    "\\ud800",
    "\\UFFFFFFFF",
    "line\nfeed",
)
BAD_NODES: dict[str, dict[str, Any]] = {
    "irregular": node("n", "irregular"),
    "no type": node("n", ""),
    "folder without tree": node("n", "dir"),
    "folder with short tree": node("n", "dir", subtree="abcd"),
    "mode too large": node("n", mode=2**40),
    "negative uid": node("n", uid=-1),
    "negative size": node("n", size=-5),
    "huge size": node("n", size=10**30),
    "size is text": node("n", size="10"),
    "bad time": node("n", mtime="yesterday"),
    "no such day": node("n", mtime="2024-02-30T00:00:00Z"),
    "content is text": node("n", content="abc"),
    "short blob id": node("n", content=["abcd"]),
    "content of nothing": node("n", content=[""] * 1000),
    "size without content": node("n", size=5, content=[]),
    "size and no content": node("n", size=5, content=None),
    "empty link": node("n", "symlink", linktarget=""),
    "link with nul": node("n", "symlink", linktarget="a\0b"),
    "endless link": node("n", "symlink", linktarget="a" * 5000),
    "attribute without name": node("n", extended_attributes=[{"name": "", "value": "YQ=="}]),
    "attribute no base64": node("n", extended_attributes=[{"name": "user.a", "value": "***"}]),
    "huge attribute": node("n", extended_attributes=[{"name": "user.a", "value": "A" * 400_000}]),
    "huge device": node("n", "dev", device=2**70),
    "negative device": node("n", "chardev", device=-1),
    "name is a number": node("n") | {"name": 5},
    "nested": node("n") | {"uid": json.loads("[" * 50 + "]" * 50)},
}


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:20])
def test_hostile_name_is_a_problem_and_the_rest_goes_on(forge: Forge, name: str) -> None:
    nodes, problems = walked(forge.finish(node("before"), node(name), node("zafter")))
    assert set(nodes) == {b"", b"before", b"zafter"}
    (problem,) = problems
    assert problem.errno in (errno.EIO, errno.EBADMSG)
    assert b"/" not in problem.path
    assert b"\0" not in problem.path
    assert problem.path not in (b"", b".", b"..")


@pytest.mark.parametrize("bad", BAD_NODES.values(), ids=BAD_NODES.keys())
def test_malformed_node_is_a_problem_and_the_rest_goes_on(forge: Forge, bad: dict[str, Any]) -> None:
    nodes, problems = walked(forge.finish(node("before"), bad, node("zafter")))
    assert set(nodes) == {b"", b"before", b"zafter"}
    assert len(problems) == 1
    assert problems[0].detail


def test_second_of_two_equal_names_is_a_problem(forge: Forge) -> None:
    nodes, problems = walked(forge.finish(node("a", uid=1), node("a", "symlink", linktarget="/etc"), node("\\x61")))
    assert nodes[b"a"].kind is Kind.FILE
    assert [problem.path for problem in problems] == [b"a", b"a"]


NO_TREES = (b"", b"[]", b"{", b'{"nodes":5}', b'{"nodes":{}}', b"\xff\xfe", b"[" * 100_000, b'{"nodes":' * 50_000)


@pytest.mark.parametrize("text", NO_TREES, ids=lambda text: repr(text[:12]))
def test_folder_that_is_no_tree_is_a_problem(forge: Forge, text: bytes) -> None:
    bad = forge.blob(text, tree=True)
    nodes, problems = walked(forge.finish(node("bad", "dir", subtree=bad), node("good")))
    assert set(nodes) == {b"", b"bad", b"good"}
    assert [(problem.path, problem.errno) for problem in problems] == [(b"bad", errno.EIO)]


def test_missing_tree_is_a_problem_of_its_folder(forge: Forge) -> None:
    nodes, problems = walked(forge.finish(node("gone", "dir", subtree="ab" * 32), node("good")))
    assert set(nodes) == {b"", b"gone", b"good"}
    assert [problem.path for problem in problems] == [b"gone"]


def test_index_that_makes_a_cycle_does_not(forge: Forge) -> None:
    # No tree can hold its own hash, but an index can claim so: the hash of the blob is what counts.
    claimed = b"c" * 32
    inner = json.dumps({"nodes": [node("again", "dir", subtree=claimed.hex())]}).encode()
    forge.blob(inner, tree=True, blob_id=claimed)
    nodes, problems = walked(forge.finish(node("cycle", "dir", subtree=claimed.hex())))
    assert set(nodes) == {b"", b"cycle"}
    assert [problem.path for problem in problems] == [b"cycle"]


def test_endless_depth_ends(forge: Forge) -> None:
    tree = forge.tree()
    for _ in range(100):
        tree = forge.tree(node("d" * 100, "dir", subtree=tree))
    nodes, problems = walked(forge.finish(node("top", "dir", subtree=tree)))
    assert max(map(len, nodes)) <= trees_module.MAX_PATH_BYTES
    assert len(problems) == 1


def test_trees_that_multiply_end(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "MAX_NODES", 5000)
    tree = forge.tree(node("leaf"))
    for _ in range(40):
        tree = forge.tree(node("a", "dir", subtree=tree), node("b", "dir", subtree=tree))
    nodes, problems = walked(forge.finish(node("bomb", "dir", subtree=tree)))
    assert len(nodes) <= 5001
    assert "absurdly many" in problems[-1].detail


def test_tree_of_millions_of_empty_objects_is_refused(forge: Forge) -> None:
    bomb = forge.blob(b'{"nodes":[' + b"{}," * 3_000_000 + b"{}]}", tree=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, problems = walked(forge.finish(node("bomb", "dir", subtree=bomb)))
    assert [problem.path for problem in problems] == [b"bomb"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_everything_that_a_node_can_hold(forge: Forge) -> None:
    raw_target = "/caf\u00e9"
    nodes, problems = walked(
        forge.finish(
            node("setuid", mode=0o755 | 1 << 23 | 1 << 22 | 1 << 20, links=2, inode=2**64 - 1, device_id=2**63),
            node("link", "symlink", mode=1 << 27 | 0o777, linktarget=raw_target, linktarget_raw="L2NhZuk="),
            node("socket", "socket", mode=1 << 24 | 0o600),
            node("char", "chardev", mode=1 << 26 | 1 << 21 | 0o600, device=0x103, links=1),
            node("old", mtime="0001-01-01T00:00:00Z", atime="1969-12-31T23:59:59.999999999Z"),
            node(
                'a\\xff\\u00e9\\n\\"',
                extended_attributes=[{"name": "user.b", "value": "AAE="}, {"name": "user.a", "value": None}],
            ),
            node("marked", extended_attributes=[{"name": "trusted.active_restore", "value": "AAE="}]),
        )
    )
    assert not problems
    assert nodes[b"setuid"].mode == 0o7755
    assert nodes[b"setuid"].link_key == (2**63, 2**64 - 1)
    assert nodes[b"link"].link_target == b"/caf\xe9"
    assert (nodes[b"socket"].kind, nodes[b"socket"].mode) == (Kind.SOCKET, 0o600)
    assert (nodes[b"char"].kind, nodes[b"char"].rdev, nodes[b"char"].link_key) == (Kind.CHAR, 0x103, None)
    assert nodes[b"old"].atime_ns == -1
    assert nodes[b"old"].mtime_ns == -(2**63) + 1
    assert nodes[b'a\xff\xc3\xa9\n"'].xattrs == ((b"user.a", b""), (b"user.b", b"\x00\x01"))
    assert nodes[b"marked"].xattrs == ()


@pytest.mark.parametrize("version", [0, 3, 99])
def test_unknown_version_is_said_clearly(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path)
    (tmp_path / "config").write_bytes(seal(json.dumps({"version": version}).encode()))
    forge.key("secret")
    with pytest.raises(RepositoryDamaged, match=f"version {version}"):
        open_source(f"restic:{tmp_path}", {"RESTIC_PASSWORD": "secret"})


BAD_KEYS: dict[str, dict[str, Any]] = {
    "other kdf": {"kdf": "argon2"},
    "absurd memory": {"N": 1 << 40},
    "no power of two": {"N": 17},
    "zero": {"r": 0},
    "no salt": {"salt": "***"},
    "no data": {"data": ""},
    "text": {"N": "16"},
}


@pytest.mark.parametrize("change", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_damaged_key_next_to_a_good_one(tmp_path: Path, change: dict[str, Any]) -> None:
    forge = Forge(tmp_path)
    forge.finish(node("file")).close()
    forge.key("other", **change)
    env = {"RESTIC_PASSWORD": "secret"}
    with pytest.raises((RepositoryDamaged, WrongPassword)):
        open_source(f"restic:{tmp_path}", env)
    forge.key("third")
    with pytest.raises(WrongPassword):
        open_source(f"restic:{tmp_path}", env)
    forge.key("secret")
    source = open_source(f"restic:{tmp_path}", env)
    assert len(trees.nodes(source.walk(source.select("latest")))) == 2
    source.close()


def test_no_repository(tmp_path: Path) -> None:
    env = {"RESTIC_PASSWORD": "secret"}
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NoRepository) as caught:
            open_source(f"restic:{place}", env)
        assert caught.value.hint
    Forge(tmp_path)
    with pytest.raises(NoRepository):
        open_source(f"restic:{tmp_path}", env)


def test_latest_is_the_newest_by_time_wherever_the_clock_was(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    tree = forge.tree()
    forge.flush()
    times = (
        "2024-01-01T00:30:00+02:00",
        "2024-01-01T00:00:00Z",
        "2023-12-31T23:59:59.999999999Z",
        "2024-01-01T00:00:00.000000001Z",
    )
    ids = [forge.snapshot(tree, time) for time in times]
    source = forge.source()
    assert source.select("latest").id == ids[3]
    assert [info.id for info in source.snapshots()] == [ids[0], ids[2], ids[1], ids[3]]
    (tmp_path / "snapshots" / ids[0]).write_bytes(b"damage")
    other = forge.source()
    with pytest.raises(RepositoryDamaged) as caught:
        other.select("latest")
    assert ids[3][:8] in caught.value.hint
    with pytest.raises(RepositoryDamaged):
        other.select(ids[0][:10])
    assert other.select(ids[1][:10]).id == ids[1]
    assert len(other.snapshots()) == 3


def test_ambiguous_prefix_lists_candidates(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    tree = forge.tree()
    forge.flush()
    ids = [forge.snapshot(tree) for _ in range(17)]
    # Among 17 ids two begin with the same digit.
    digit = next(one for one in "0123456789abcdef" if sum(name.startswith(one) for name in ids) > 1)
    with pytest.raises(SnapshotError, match="snapshots begin with") as caught:
        forge.source().select(digit)
    assert sum(name[:8] in caught.value.hint for name in ids) > 1


def test_repository_without_snapshots(tmp_path: Path) -> None:
    source = Forge(tmp_path).source()
    assert source.snapshots() == []
    with pytest.raises(SnapshotError) as caught:
        source.select("latest")
    assert caught.value.hint
