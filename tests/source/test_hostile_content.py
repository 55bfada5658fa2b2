"""Repositories that lie about content and indexes: a file is refused or read elsewhere, never made up."""

from __future__ import annotations

import json
import resource
from typing import TYPE_CHECKING, Any

import pytest

from active_restore.errors import ContentError
from active_restore.model import FileRef, Node, Piece
from active_restore.source.restic.reader import ResticReader
from active_restore.store.local import LocalStore
from tests.source.forge import KEYS, Forge, node
from tests.source.walking import walked

if TYPE_CHECKING:
    from pathlib import Path

    from active_restore.source.restic.repository import ResticSource


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
    nodes, problems = walked(forge.source())
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
    nodes, problems = walked(
        forge.finish(
            node("good", size=10, content=[four, six]),
            node("long", size=9, content=[four, six]),
            node("one", size=5, content=[four]),
            node("unknown", size=5, content=[four, "ab" * 32]),
        )
    )
    assert set(nodes) == {b"", b"good", b"unknown"}
    assert [problem.path for problem in problems] == [b"long", b"one"]
