"""What is fuzzed: each target takes any bytes, and must neither raise what is not expected nor break its promise.

Memory and time are watched by the fuzzer itself (see ``tests.fuzz.__main__``).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec

from active_restore.control import messages
from active_restore.control.names import path_fields
from active_restore.errors import ActiveRestoreError, ContentError, RepositoryDamaged, UsageError
from active_restore.intercept import wire
from active_restore.marker import MARKER, marker_prefix, marker_row, marker_value
from active_restore.model import FileRef, Kind, Node, Problem
from active_restore.restore import frames, job
from active_restore.source import manifest
from active_restore.source.restic import keys, moments, names, pack, tree
from active_restore.store.restlist import RestListing
from tests.fuzz.memory_store import opened, repository

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_NODES = 2000
_MAX_PARTS = 12
_MEMBERS = ("offset", "length", "uncompressed_length")
_PREFIX = marker_prefix("0123456789abcdef")


def check_path(path: bytes) -> None:
    """It leads to a place below the target, whatever the target is."""
    assert len(path) <= tree.MAX_PATH_BYTES
    if path:
        assert b"\0" not in path
        assert not {b"", b".", b".."} & set(path.split(b"/")), path


def check_node(node: Node) -> None:
    """No value that a system call or the catalog could choke on."""
    check_path(node.path)
    assert 0 <= node.mode <= 0o7777
    assert 0 <= node.size < 1 << 63
    assert all(0 <= number < 1 << 64 for number in (node.uid, node.gid, node.rdev))
    assert all(abs(number) < 1 << 63 for number in (node.mtime_ns, node.atime_ns))
    assert len(node.content) % 32 == 0
    assert (node.kind is Kind.SYMLINK) == bool(node.link_target)
    assert b"\0" not in node.link_target
    assert MARKER.encode() not in [name for name, _ in node.xattrs]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(node), type=Node) == node


def fuzz_tree(data: bytes) -> None:
    """The JSON of a folder."""
    with contextlib.suppress(ContentError):
        for item in tree.nodes(data, b"parent"):
            node = item.node if isinstance(item, tree.Folder) else item
            assert node.path.startswith(b"parent/")
            assert node.path.count(b"/") == 1
            if isinstance(node, Problem):
                check_path(node.path)
            else:
                check_node(node)


def fuzz_repository(data: bytes) -> None:
    """A whole repository of a few blobs with an index that lies: walked and read. See ``memory_store.repository``."""
    *parts, last = data.split(b"\xff\xfe")[:_MAX_PARTS]
    # Each lie: which entry of the index, which member, and four bytes of value.
    lies = [
        (last[at], _MEMBERS[last[at + 1] % 3], int.from_bytes(last[at + 2 : at + 6], "little"))
        for at in range(0, len(last) - 5, 6)
    ]
    source = repository(parts, lies)
    try:
        refs = []
        with contextlib.suppress(RepositoryDamaged):
            for item in itertools.islice(source.walk(source.select("latest")), _MAX_NODES):
                check_path(item.path)
                if isinstance(item, Node):
                    check_node(item)
                    if item.kind is Kind.FILE:
                        refs.append(FileRef(item.path, item.size, item.mtime_ns, item.content))
        with contextlib.closing(source.reader()) as reader:
            ends = [0] * len(refs)
            for position, piece in reader.read_many(refs):
                if piece is not None and not isinstance(piece, ContentError):
                    assert ends[position] <= piece.offset
                    ends[position] = piece.offset + len(piece.data)
                    assert ends[position] <= refs[position].size
            for ref in refs[:20]:
                with contextlib.suppress(ContentError):
                    for piece in reader.read(ref):
                        assert piece.offset + len(piece.data) <= ref.size
    finally:
        source.close()


def fuzz_index(data: bytes) -> None:
    """The JSON of an index file."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    source = opened(b"", document, bytes(32))
    try:
        entries = source.index.entries.astype("int64")
        assert (entries[:, 1] + entries[:, 2] <= 0xFFFFFFFF).all()
        assert (entries[:, 2] >= 32).all()
    finally:
        source.close()


def fuzz_pack_header(data: bytes) -> None:
    """The decrypted header of a pack."""
    with contextlib.suppress(ContentError):
        ids, places = pack.parse_header(data, 1 << 20)
        assert len(ids) == 32 * len(places)
        assert int(places[:, 1].astype("int64").sum()) <= 1 << 20


def fuzz_key(data: bytes) -> None:
    """A key file; one that would make scrypt work for long is not derived."""
    with contextlib.suppress(ValueError, RecursionError):
        key = msgspec.json.decode(data, type=keys.KeyFile)
        if key.N * key.r * key.p < 1 << 10:
            with contextlib.suppress(ContentError):
                keys.derive(key, b"password")


def fuzz_text(data: bytes) -> None:
    """Times and names of restic."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        moments.parse(text)
    with contextlib.suppress(ValueError):
        names.unquote(text)


def fuzz_manifest(data: bytes) -> None:
    """The manifest of a directory."""
    with contextlib.suppress(RepositoryDamaged):
        for path, digest in manifest.parse(data).items():
            assert path
            assert len(digest) == 32


def fuzz_listing(data: bytes) -> None:
    """What a REST server answers to a listing."""
    with contextlib.suppress(ActiveRestoreError):
        RestListing("rest:", "http://127.0.0.1/", {}, "")._parsed(data)


def fuzz_request(data: bytes) -> None:
    """A line on the control socket."""
    with contextlib.suppress(UsageError):
        request = messages.parse_request(data)
        again = messages.parse_request(messages.request_line(request))
        assert again == request
        if isinstance(request, messages.PromoteRequest):
            for path in request.paths:
                with contextlib.suppress(UsageError):
                    raw = path.to_bytes()
                    assert b"\0" not in raw
                    assert messages.PathText(**path_fields(raw)).to_bytes() == raw


def fuzz_state(data: bytes) -> None:
    """What lies on the disk or goes through a pipe as msgpack or JSON: markers, packets, frames, nodes, the job."""
    with contextlib.suppress(ValueError, msgpack.UnpackException):
        row = marker_row(_PREFIX, _PREFIX + data)
        assert row >= 0
        assert marker_row(_PREFIX, marker_value(_PREFIX, row)) == row
    with contextlib.suppress(ValueError, msgpack.UnpackException):
        wire.unpack(data)
    with contextlib.suppress(ValueError, msgpack.UnpackException):
        frames.read_frame(io.BytesIO(data))
    with contextlib.suppress(ValueError):
        msgspec.msgpack.decode(data, type=Node)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found: Any = json.loads(data)
        job._from_dict("name", found)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "tree": fuzz_tree,
    "repository": fuzz_repository,
    "index": fuzz_index,
    "pack_header": fuzz_pack_header,
    "key": fuzz_key,
    "text": fuzz_text,
    "manifest": fuzz_manifest,
    "listing": fuzz_listing,
    "request": fuzz_request,
    "state": fuzz_state,
}
