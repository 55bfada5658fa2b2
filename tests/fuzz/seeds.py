"""The first inputs of each target; what fuzzing found since is beside them in ``corpus``."""

from __future__ import annotations

import json
import struct

import msgpack
import msgspec

from active_restore.model import Kind, Node
from tests.source.forge import TIME, node

_ID = "ab" * 32
_EVERY_NODE = (
    node("file", size=4, content=[_ID], inode=7, device_id=2, links=2),
    node("sparse", size=9, content=[_ID, _ID]),
    node("folder", "dir", subtree=_ID),
    node("link", "symlink", linktarget="/caf\u00e9", linktarget_raw="L2NhZuk="),
    node("char", "chardev", device=259),
    node("block", "dev", device=1),
    node("pipe", "fifo"),
    node("socket", "socket"),
    node("a\\xff\\u00e9\\n", mode=0o755 | 1 << 23, extended_attributes=[{"name": "user.a", "value": "YQ=="}]),
)


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _tree(*nodes: object) -> bytes:
    return b"t" + _json({"nodes": nodes})


def _repository(*parts: bytes, lies: bytes = b"") -> bytes:
    return b"\xff\xfe".join([*parts, lies])


def _lie(entry: int, member: int, value: int) -> bytes:
    return struct.pack("<BBI", entry, member, value)


_FILE = node("f", size=4, content=["@0"])
_BLOB = {"id": _ID, "type": "data", "offset": 0, "length": 40, "uncompressed_length": 8}
_PLACED = {"source": "dir:/a", "target": "/b", "restore_id": "00" * 8, "phase": "laying", "include": ["*"]}

SEEDS: dict[str, tuple[bytes, ...]] = {
    "tree": (
        _json({"nodes": _EVERY_NODE}),
        _json({"nodes": [_EVERY_NODE[0], {"name": 5}]}),
        b'{"nodes":null}',
        *(_json({"nodes": [node(name)]}) for name in ("..", "a/b", "nul\\x00", "\\ud800")),
    ),
    "repository": (
        _repository(b"dgood", _tree(_FILE)),
        _repository(b"dgood", b"doops", _tree(_FILE, node("g", size=8, content=["@0", "@1"]))),
        _repository(b"dgood", _tree(_FILE), _tree(node("d", "dir", subtree="@1"), node("e", "dir", subtree="@1"))),
        _repository(b"dgood", _tree(node("cycle", "dir", subtree="@1"))),
        _repository(b"b" + bytes(1000), _tree(node("bomb", size=1_024_000, content=["@0"]))),
        *(
            _repository(b"dgood", _tree(_FILE), lies=_lie(0, member, value))
            for member in range(3)
            for value in (0, 31, 1 << 20, 1 << 28, 0xFFFFFFFF)
        ),
    ),
    "index": (
        _json({"packs": [{"id": _ID, "blobs": [_BLOB]}], "supersedes": ["00"]}),
        _json({"packs": [{"id": _ID, "blobs": [_BLOB, _BLOB | {"offset": 0xFFFFFFFF}]}, {"id": "zz", "blobs": []}]}),
    ),
    "pack_header": (
        struct.pack("<BII32s", 2, 40, 8, bytes(32)) + struct.pack("<BI32s", 0, 40, bytes(32)),
        struct.pack("<BI32s", 1, 0xFFFFFFFF, bytes(32)),
    ),
    "key": (
        b'{"kdf":"\xff"}',
        _json({"kdf": "scrypt", "N": 16, "r": 1, "p": 1, "salt": "c2FsdA==", "data": "ZGF0YQ=="}),
    ),
    "text": (b"\\UFFFFFFFF", TIME.encode(), b"2024-05-06T07:08:09+14:00", b'a\\xff\\u00e9\\U0001F600\\n\\t\\\\\\"\\101'),
    "manifest": (
        b"active-restore-manifest 1 sha256\0" + b"ab" * 32 + b"  a/b\0end 1\0",
        b"active-restore-manifest 1 sha256\0end 0\0",
    ),
    "listing": (_json([{"name": _ID, "size": 5}]), _json([_ID]), b"null", b'["\xff"]'),
    "request": (
        _json({"version": 1, "command": "status"}),
        _json({"version": 1, "command": "promote", "paths": [{"path": "a\\xff", "path_b64": "Yf8="}]}),
        _json({"version": 1, "command": "limit", "bytes_per_s": 1 << 62}),
        _json({"version": 2, "command": "stop"}),
        '{"command": "promote", "paths": [{"path": "a", "path_b64": "\u00e9"}]}'.encode(),
    ),
    "state": (
        msgpack.packb(3) + msgpack.packb(0xFFFFFFFF),
        msgpack.packb([3, 20, 7, b"handle", 44, 1 << 60, -1, 0]),
        struct.pack("<I", 4) + msgpack.packb([2, 1, []]),
        msgspec.msgpack.encode(Node(b"a", Kind.FILE, 0o644, xattrs=((b"user.a", b"b"),), link_key=(1, 2))),
        _json(_PLACED),
        b"5",
    ),
}
