"""Repositories that lie: what is wrong becomes a problem of its place, the rest goes on, and memory stays bounded."""

from __future__ import annotations

import errno
import json
import resource
from typing import TYPE_CHECKING, Any

import pytest

from active_restore.errors import ContentError, NoRepository, RepositoryDamaged, SnapshotError, WrongPassword
from active_restore.model import FileRef, Kind, Node, Piece, Problem
from active_restore.source.open import open_source
from active_restore.source.restic import tree as trees_module
from active_restore.source.restic import walk as walk_module
from active_restore.source.restic.reader import ResticReader
from active_restore.store.local import LocalStore
from tests.source import trees
from tests.source.forge import KEYS, Forge, node, seal

if TYPE_CHECKING:
    from pathlib import Path

    from active_restore.source.restic.repository import ResticSource


def _walk(source: ResticSource, subfolder: bytes = b"") -> tuple[dict[bytes, Node], list[Problem]]:
    items = list(source.walk(source.select("latest"), subfolder))
    source.close()
    return {item.path: item for item in items if isinstance(item, Node)}, [item for item in items if isinstance(item, Problem)]


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def forge(request: pytest.FixtureRequest, tmp_path: Path) -> Forge:
    return Forge(tmp_path / "repo", request.param)


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
    nodes, problems = _walk(forge.finish(node("before"), node(name), node("zafter")))
    assert set(nodes) == {b"", b"before", b"zafter"}
    (problem,) = problems
    assert problem.errno in (errno.EIO, errno.EBADMSG)
    assert b"/" not in problem.path
    assert b"\0" not in problem.path
    assert problem.path not in (b"", b".", b"..")


@pytest.mark.parametrize("bad", BAD_NODES.values(), ids=BAD_NODES.keys())
def test_malformed_node_is_a_problem_and_the_rest_goes_on(forge: Forge, bad: dict[str, Any]) -> None:
    nodes, problems = _walk(forge.finish(node("before"), bad, node("zafter")))
    assert set(nodes) == {b"", b"before", b"zafter"}
    assert len(problems) == 1
    assert problems[0].detail


def test_second_of_two_equal_names_is_a_problem(forge: Forge) -> None:
    nodes, problems = _walk(forge.finish(node("a", uid=1), node("a", "symlink", linktarget="/etc"), node("\\x61")))
    assert nodes[b"a"].kind is Kind.FILE
    assert [problem.path for problem in problems] == [b"a", b"a"]


NO_TREES = (b"", b"[]", b"{", b'{"nodes":5}', b'{"nodes":{}}', b"\xff\xfe", b"[" * 100_000, b'{"nodes":' * 50_000)


@pytest.mark.parametrize("text", NO_TREES, ids=lambda text: repr(text[:12]))
def test_folder_that_is_no_tree_is_a_problem(forge: Forge, text: bytes) -> None:
    bad = forge.blob(text, tree=True)
    nodes, problems = _walk(forge.finish(node("bad", "dir", subtree=bad), node("good")))
    assert set(nodes) == {b"", b"bad", b"good"}
    assert [(problem.path, problem.errno) for problem in problems] == [(b"bad", errno.EIO)]


def test_missing_tree_is_a_problem_of_its_folder(forge: Forge) -> None:
    nodes, problems = _walk(forge.finish(node("gone", "dir", subtree="ab" * 32), node("good")))
    assert set(nodes) == {b"", b"gone", b"good"}
    assert [problem.path for problem in problems] == [b"gone"]


def test_index_that_makes_a_cycle_does_not(forge: Forge) -> None:
    # No tree can hold its own hash, but an index can claim so: the hash of the blob is what counts.
    claimed = b"c" * 32
    inner = json.dumps({"nodes": [node("again", "dir", subtree=claimed.hex())]}).encode()
    forge.blob(inner, tree=True, blob_id=claimed)
    nodes, problems = _walk(forge.finish(node("cycle", "dir", subtree=claimed.hex())))
    assert set(nodes) == {b"", b"cycle"}
    assert [problem.path for problem in problems] == [b"cycle"]


def test_endless_depth_ends(forge: Forge) -> None:
    tree = forge.tree()
    for _ in range(100):
        tree = forge.tree(node("d" * 100, "dir", subtree=tree))
    nodes, problems = _walk(forge.finish(node("top", "dir", subtree=tree)))
    assert max(map(len, nodes)) <= trees_module.MAX_PATH_BYTES
    assert len(problems) == 1


def test_trees_that_multiply_end(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "MAX_NODES", 5000)
    tree = forge.tree(node("leaf"))
    for _ in range(40):
        tree = forge.tree(node("a", "dir", subtree=tree), node("b", "dir", subtree=tree))
    nodes, problems = _walk(forge.finish(node("bomb", "dir", subtree=tree)))
    assert len(nodes) <= 5001
    assert "absurdly many" in problems[-1].detail


def test_tree_of_millions_of_empty_objects_is_refused(forge: Forge) -> None:
    bomb = forge.blob(b'{"nodes":[' + b"{}," * 3_000_000 + b"{}]}", tree=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, problems = _walk(forge.finish(node("bomb", "dir", subtree=bomb)))
    assert [problem.path for problem in problems] == [b"bomb"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def _errors(source: ResticSource, *refs: FileRef) -> list[ContentError | None]:
    """How each file ends, by ``read_many`` and, the same, by ``read``."""
    reader = source.reader()
    ends: list[ContentError | None] = [None] * len(refs)
    for position, item in reader.read_many(refs):
        if isinstance(item, ContentError):
            ends[position] = item
    for ref, end in zip(refs, ends, strict=True):
        if end is None:
            assert list(reader.read(ref))
        else:
            with pytest.raises(ContentError):
                list(reader.read(ref))
    reader.close()
    source.close()
    return ends


def _ref(*blobs: str, size: int = 4) -> FileRef:
    return FileRef(b"f", size, 0, bytes.fromhex("".join(blobs)))


def test_blob_with_a_false_hash_is_refused(forge: Forge) -> None:
    good, false = forge.blob(b"good"), forge.blob(b"fake", blob_id=b"f" * 32)
    ends = _errors(forge.finish(), _ref(good), _ref(false), _ref("ee" * 32), _ref(good, false, size=8))
    assert [end is None for end in ends] == [True, False, False, False]


def test_decompression_bomb_is_refused_without_unpacking_it(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    bomb, good = forge.blob(b"tiny", pack_as=bytes(2_000_000_000)), forge.blob(b"good")
    source = forge.finish()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = _errors(source, _ref(bomb), _ref(good))
    assert [end is None for end in ends] == [False, True]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


LIES = {
    "behind the end": {"offset": 1 << 31},
    "longer than the pack": {"length": 1 << 20},
    "over 4 GiB": {"offset": 0xFFFFFFFF, "length": 0xFFFFFFFF},
    "too short to be sealed": {"length": 31},
    "another size": {"uncompressed_length": 5},
    "a giant": {"uncompressed_length": 1 << 31},
    "a large one": {"uncompressed_length": 200 << 20},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_index_that_lies_spoils_one_file_only(tmp_path: Path, lie: dict[str, int]) -> None:
    forge = Forge(tmp_path)
    false, good = forge.blob(b"fals"), forge.blob(b"good")
    tree = forge.tree(node("false", size=4, content=[false]), node("good", size=4, content=[good]))
    name = forge.flush()
    (index,) = (tmp_path / "index").iterdir()
    text = json.loads(forge.source()._box.document(memoryview(index.read_bytes())))
    index.unlink()
    text["packs"][0]["blobs"][0] |= lie
    assert text["packs"][0]["id"] == name
    forge.document("index", text)
    forge.snapshot(tree)
    source = forge.source()
    items = {item.path: item for item in source.walk(source.select("latest"))}
    assert isinstance(items[b"good"], Node)
    ends = _errors(source, _ref(false), _ref(good))
    assert [end is None for end in ends] == [False, True]


def test_absurd_entries_are_not_even_kept(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    good = forge.blob(b"good")
    absurd = [{"offset": 0, "length": 31}, {"offset": 1 << 31, "length": 1 << 31}, {"offset": 0, "length": 300 << 20}]
    absurd.append({"offset": 0, "length": 99, "uncompressed_length": 300 << 20})
    forge.index([{"id": "ab" * 32, "blobs": [one | {"id": "ee" * 32} for one in absurd]}])
    source = forge.finish()
    assert list(source.index.copies(b"\xee" * 32)) == []
    assert _errors(source, _ref(good)) == [None]


@pytest.mark.parametrize(
    "packs",
    [5, [5], [{"id": "zz", "blobs": []}], [{"id": "ab" * 32, "blobs": [{"id": "x", "offset": 0, "length": 40}]}],
     [{"id": "ab" * 32, "blobs": [{"id": "ab" * 32, "offset": -1, "length": 40}]}]],
    ids=repr,
)  # fmt: skip
def test_malformed_index_file_is_replaced_by_pack_headers(forge: Forge, packs: Any) -> None:
    good = forge.blob(b"good")
    tree = forge.tree(node("good", size=4, content=[good]))
    forge.flush(with_index=False)
    forge.document("index", {"packs": packs})
    forge.snapshot(tree)
    nodes, problems = _walk(forge.source())
    assert set(nodes) == {b"", b"good"}
    assert not problems


def test_superseded_index_does_not_count(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    good = forge.blob(b"good")
    old = forge.index([{"id": "ab" * 32, "blobs": [{"id": good, "type": "data", "offset": 0, "length": 40}]}])
    forge.supersedes = [old]
    source = forge.finish()
    assert [place.pack for place in source.index.copies(bytes.fromhex(good))] == [0]
    assert len(source.index) == 2
    assert _errors(source, _ref(good)) == [None]


def test_another_copy_survives_a_damaged_pack(forge: Forge) -> None:
    good = forge.blob(b"good")
    first = forge.flush()
    forge.blob(b"filler")
    forge.blob(b"good")
    second = forge.flush()
    for name in (first, second):
        path = forge.root / "data" / name[:2] / name
        whole = path.read_bytes()
        path.write_bytes(b"\xff" * len(whole))
        assert _errors(forge.source(), _ref(good)) == [None]
        path.unlink()
        assert _errors(forge.source(), _ref(good)) == [None]
        path.write_bytes(whole)


class _Glitching(LocalStore):
    """A disk whose every second answer has a flipped bit."""

    calls = 0

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        data = bytearray(super().get_range(name, offset, length))
        self.calls += 1
        data[length // 2] ^= self.calls % 2
        return memoryview(data)


def test_what_was_damaged_on_the_way_is_read_again(forge: Forge) -> None:
    blobs = [forge.blob(b"%04d" % number) for number in range(9)]
    source = forge.finish()
    reader = ResticReader(lambda: _Glitching(str(forge.root)), source.index, KEYS)
    assert b"".join(bytes(piece.data) for piece in reader.read(_ref(*blobs[:3], size=12))) == b"000000010002"
    assert [item for _, item in reader.read_many([_ref(one) for one in blobs]) if not isinstance(item, Piece)] == [None] * 9
    reader.close()
    source.close()


class _Counting(LocalStore):
    """A disk that counts what is asked of it."""

    calls = 0

    def get_range(self, name: str, offset: int, length: int) -> memoryview:
        self.calls += 1
        return super().get_range(name, offset, length)


def test_a_file_that_is_given_up_is_not_read_to_its_end(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    false = forge.blob(b"false", blob_id=b"f" * 32)
    blobs = [forge.blob(b"%d" % number * (8 << 20)) for number in range(30)]
    source = forge.finish()
    store = _Counting(str(tmp_path))
    reader = ResticReader(lambda: store, source.index, KEYS)
    (end,) = [item for _, item in reader.read_many([_ref(false, *blobs, size=5 + 30 * (8 << 20))])]
    assert isinstance(end, ContentError)
    assert store.calls <= 5
    reader.close()
    source.close()


def test_only_blobs_of_nothing_but_zeros_are_left_out(forge: Forge) -> None:
    plain = (bytes(3), bytes(17), bytes(16) + b"x", bytes(40), b"x" + bytes(40))
    blobs = [forge.blob(one) for one in plain]
    source = forge.finish()
    reader = source.reader()
    pieces = list(reader.read(_ref(*blobs, size=sum(map(len, plain)))))
    assert [(piece.offset, bytes(piece.data)) for piece in pieces] == [(20, plain[2]), (77, plain[4])]
    reader.close()
    source.close()


def test_files_that_lie_about_their_size_are_refused(forge: Forge) -> None:
    four, six = forge.blob(b"four"), forge.blob(b"sixsix")
    sizes = (9, 11, 4, 3, 0)
    ends = _errors(forge.finish(), _ref(four, six, size=10), *(_ref(four, six, size=size) for size in sizes))
    assert [end is None for end in ends] == [True] + [False] * len(sizes)


def test_sizes_that_do_not_add_up_are_found_while_walking(forge: Forge) -> None:
    four, six = forge.blob(b"four"), forge.blob(b"sixsix")
    nodes, problems = _walk(
        forge.finish(
            node("good", size=10, content=[four, six]),
            node("long", size=9, content=[four, six]),
            node("one", size=5, content=[four]),
            node("unknown", size=5, content=[four, "ab" * 32]),
        )
    )
    assert set(nodes) == {b"", b"good", b"unknown"}
    assert [problem.path for problem in problems] == [b"long", b"one"]


def test_everything_that_a_node_can_hold(forge: Forge) -> None:
    raw_target = "/caf\u00e9"
    nodes, problems = _walk(
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
