"""Names, times, modes, trees, pack headers and the index table, for whatever comes."""

from __future__ import annotations

import datetime
import json
import os
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_restore.errors import ContentError
from active_restore.model import Node, Problem
from active_restore.source.restic import moments, names, pack, tree
from active_restore.source.restic.index import BlobIndex, IndexBuilder, Location
from active_restore.source.restic.runs import MAX_RUN_BYTES, coalesce


def go_quote(name: bytes) -> str:
    """Go's ``strconv.Quote`` without the quotes (go/src/strconv/quote.go, appendQuotedWith)."""
    simple = {7: "\\a", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t", 11: "\\v", 34: '\\"', 92: "\\\\"}
    out = ""
    for char in name.decode(errors="surrogateescape"):
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:
            out += f"\\x{code - 0xDC00:02x}"
        elif code in simple:
            out += simple[code]
        elif char.isprintable():
            out += char
        elif code < 0x20 or code == 0x7F:
            out += f"\\x{code:02x}"
        else:
            out += f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return out


class TestNames:
    @given(st.binary(max_size=300))
    def test_any_bytes_survive_quoting(self, name: bytes) -> None:
        assert names.unquote(go_quote(name)) == name

    @given(st.text())
    def test_any_text_is_understood_or_refused(self, quoted: str) -> None:
        try:
            assert isinstance(names.unquote(quoted), bytes)
        except ValueError:
            return

    @pytest.mark.parametrize(
        ("quoted", "name"),
        [("\\101", b"A"), ("\\xff", b"\xff"), ("\\u00e9", b"\xc3\xa9"), ("\\U0001f427", b"\xf0\x9f\x90\xa7")],
    )
    def test_escapes(self, quoted: str, name: bytes) -> None:
        assert names.unquote(quoted) == name

    @pytest.mark.parametrize("quoted", ["\\", "\\'", "\\x1", "\\400", "\\ud800", "\\U00110000", '"', "\n", "a\\q", '\\\\"'])
    def test_what_go_refuses(self, quoted: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            names.unquote(quoted)


class TestMoments:
    @given(
        st.datetimes(timezones=st.timezones() | st.just(datetime.UTC)),
        st.integers(0, 999_999_999),
    )
    def test_equals_the_calendar_of_python(self, moment: datetime.datetime, nanoseconds: int) -> None:
        offset = moment.utcoffset() or datetime.timedelta()
        if offset.total_seconds() % 60:
            return
        seconds = int(offset.total_seconds())
        sign = "-" if seconds < 0 else "+"
        zone = f"{sign}{abs(seconds) // 3600:02d}:{abs(seconds) % 3600 // 60:02d}" if seconds else "Z"
        fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
        text = moment.strftime("%m-%dT%H:%M:%S")
        epoch = datetime.datetime(1970, 1, 1)
        expected = (moment.replace(tzinfo=None, microsecond=0) - epoch) // datetime.timedelta(seconds=1) - seconds
        assert moments.parse(f"{moment.year:04d}-{text}{fraction}{zone}") == expected * 10**9 + nanoseconds

    @pytest.mark.parametrize(
        ("text", "time_ns"),
        [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.5Z", -500_000_000),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31T16:00:00.000000001-08:00", 1),
            ("0001-01-01T00:00:00Z", -62135596800 * 10**9),
            ("0000-01-01T00:00:00Z", -62167219200 * 10**9),
            ("0000-12-31T00:00:00Z", -62135683200 * 10**9),
            ("9999-12-31T23:59:59.999999999Z", 253402300799 * 10**9 + 999_999_999),
        ],
    )
    def test_known_times(self, text: str, time_ns: int) -> None:
        assert moments.parse(text) == time_ns

    @pytest.mark.parametrize(
        "text",
        ["", "Z", "1970-01-01", "1970-01-01T00:00:00", "1970-13-01T00:00:00Z", "1970-01-01T24:00:00Z", "1970-01-01T00:00:00.Z",
         "1970-01-01T00:00:00+25:00", "1970W011T00:00:00ZZZ", "\u0661970-01-01T00:00:00Z", "1970-01-01 00:00:00Z"],
    )  # fmt: skip
    def test_what_is_no_time(self, text: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            moments.parse(text)

    @given(st.text(max_size=40))
    def test_any_text_is_understood_or_refused(self, text: str) -> None:
        try:
            assert isinstance(moments.parse(text), int)
        except ValueError:
            return


class TestModes:
    @given(st.integers(0, 0xFFFFFFFF))
    def test_only_permissions_and_three_bits_count(self, go_mode: int) -> None:
        mode = tree.unix_mode(go_mode)
        assert mode & 0o777 == go_mode & 0o777
        assert [bool(mode & bit) for bit in (0o4000, 0o2000, 0o1000)] == [bool(go_mode >> bit & 1) for bit in (23, 22, 20)]
        assert mode <= 0o7777


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
_members = ("name", "type", "mode", "mtime", "atime", "uid", "gid", "inode", "device_id", "size", "links", "linktarget",
            "linktarget_raw", "extended_attributes", "device", "content", "subtree")  # fmt: skip
_good: dict[str, Any] = {"type": "file", "mtime": "2020-01-01T00:00:00Z"}
_node = st.fixed_dictionaries({"name": st.text(max_size=8)}, optional=dict.fromkeys(_members[1:], _json))


class TestTrees:
    @given(st.lists(st.builds(lambda one: _good | one, _node) | _json, max_size=6))
    def test_any_nodes_become_nodes_or_problems(self, listed: list[Any]) -> None:
        self._check(json.dumps({"nodes": listed}).encode())

    @given(st.binary(max_size=200) | _json.map(lambda value: json.dumps(value).encode()))
    def test_any_bytes_become_nodes_or_problems(self, text: bytes) -> None:
        self._check(text)

    def _check(self, text: bytes) -> None:
        seen = set()
        try:
            for item in tree.nodes(text, b"top"):
                item = item.node if isinstance(item, tree.Folder) else item
                assert isinstance(item, Node | Problem)
                parent, _, name = item.path.rpartition(b"/")
                assert parent == b"top"
                assert name not in (b"", b".", b"..")
                assert b"\0" not in name
                if isinstance(item, Node):
                    assert item.path not in seen
                    seen.add(item.path)
        except ContentError:
            return

    @given(st.lists(st.binary(min_size=32, max_size=32), max_size=20), st.sampled_from([(",", ":"), (", ", ": ")]))
    def test_blob_ids(self, ids: list[bytes], separators: tuple[str, str]) -> None:
        raw = json.dumps([one.hex() for one in ids], separators=separators).encode()
        assert tree.blob_ids(raw) == b"".join(ids)


_blob = st.tuples(st.integers(0, 3), st.integers(32, 1 << 20), st.integers(1, 1 << 22), st.binary(min_size=32, max_size=32))


class TestPackHeader:
    @given(st.lists(_blob, max_size=30))
    def test_every_entry_is_found(self, blobs: list[tuple[int, int, int, bytes]]) -> None:
        header = b""
        expected = []
        offset = 0
        for kind, length, plain_length, blob_id in blobs:
            compressed = kind > 1
            header += struct.pack("<BI", kind, length) + (struct.pack("<I", plain_length) if compressed else b"") + blob_id
            expected.append([offset, length, plain_length if compressed else 0])
            offset += length
        ids, places = pack.parse_header(header, offset)
        assert ids == b"".join(blob[3] for blob in blobs)
        assert places.tolist() == expected
        if blobs:
            with pytest.raises(ContentError):
                pack.parse_header(header, offset - 1)
            with pytest.raises(ContentError):
                pack.parse_header(header[:-1], offset)

    @given(st.binary(max_size=300))
    def test_any_bytes_are_understood_or_refused(self, header: bytes) -> None:
        try:
            ids, places = pack.parse_header(header, 1 << 20)
        except ContentError:
            return
        assert len(ids) == 32 * len(places)


# Few leading bytes, so that equal and nearly equal ids come up.
_ids = st.builds(
    lambda head, tail: head * 8 + tail * 24, st.sampled_from([b"\0", b"\1", b"\xff"]), st.binary(min_size=1, max_size=1)
)
_ids = _ids | st.binary(min_size=32, max_size=32)


class TestIndex:
    @given(st.lists(st.lists(st.tuples(_ids, st.integers(0, 1 << 30)), max_size=12), max_size=6), _ids)
    def test_is_a_dictionary(self, listed: list[list[tuple[bytes, int]]], other: bytes) -> None:
        builder = IndexBuilder()
        expected: dict[bytes, set[Location]] = {}
        for number, blobs in enumerate(listed):
            places = np.array([(offset, 100, 7) for _, offset in blobs], np.uint32).reshape(-1, 3)
            builder.add(b"%032d" % number, b"".join(blob_id for blob_id, _ in blobs), places)
            for blob_id, offset in blobs:
                expected.setdefault(blob_id, set()).add(Location(number, offset, 100, 7))
        index = builder.build()
        for blob_id, places_of_blob in expected.items():
            assert set(index.copies(blob_id)) == places_of_blob
            assert index.location(index.find(blob_id)) in places_of_blob
        assert (index.find(other) >= 0) == (other in expected)
        wanted = [*expected, other]
        assert index.rows(b"".join(wanted)).tolist() == [index.find(one) for one in wanted]
        assert [index.pack_name(number) for number in range(len(listed))] == [(b"%032d" % n).hex() for n in range(len(listed))]
        index.close()

    def test_takes_less_than_60_bytes_for_a_blob(self) -> None:
        index = _large_index(100_000)
        assert os.fstat(index.descriptor).st_size < 50 * len(index)
        index.close()

    def test_colliding_ids_do_not_grow_without_end(self) -> None:
        builder = IndexBuilder()
        ids = b"".join(b"samesame" + struct.pack(">QQQ", 0, 0, number) for number in range(10_000))
        builder.add(b"p" * 32, ids, np.full((10_000, 3), 64, np.uint32))
        index = builder.build()
        assert len(index) <= 64
        index.close()

    def test_a_descriptor_that_is_too_small_is_refused(self) -> None:
        index = _large_index(1000)
        with pytest.raises(ValueError, match="smaller"):
            BlobIndex(index.descriptor, (1 << 20, 1, 4))
        index.close()


def _large_index(blobs: int) -> BlobIndex:
    builder = IndexBuilder()
    chance = np.random.default_rng(1)
    builder.add(b"p" * 32, chance.bytes(32 * blobs), np.full((blobs, 3), 64, np.uint32))
    return builder.build()


class TestRuns:
    @given(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40 << 20), st.integers(32, 9 << 20)), min_size=1, max_size=40),
    )
    def test_every_blob_lies_in_exactly_one_run(self, blobs: list[tuple[int, int, int]]) -> None:
        entries = np.array([(*blob, 0) for blob in blobs], np.uint32)
        found = []
        for run in coalesce(np.arange(len(blobs)), entries, 1 << 20):
            assert run.length <= MAX_RUN_BYTES or len(run.rows) == 1
            for row, start, length in zip(run.rows, run.starts, run.lengths, strict=True):
                assert (run.pack, run.offset + start, length) == blobs[row]
                assert start + length <= run.length
                found.append(row)
        assert sorted(found) == list(range(len(blobs)))
