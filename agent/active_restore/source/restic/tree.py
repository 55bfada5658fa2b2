"""Trees: JSON of a folder turned into nodes. Nothing in it is believed.

Source: restic ``doc/design.rst`` ("Trees and Data"), ``internal/data/node.go``; mode bits: Go ``io/fs`` (FileMode).
"""

from __future__ import annotations

import errno
import hashlib
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from active_restore.errors import ContentError
from active_restore.model import Kind, Node, Problem
from active_restore.source.restic import moments, names

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PATH_BYTES = 4095
_MAX_NAME_BYTES = 255
_MAX_TIME_NS = 2**63 - 1
_MARKER = b"trusted.active_restore"
_GO_SETUID, _GO_SETGID, _GO_STICKY = 1 << 23, 1 << 22, 1 << 20
# Shorter objects are possible but nobody makes many of them: they would blow up 30-fold in memory.
_MIN_OBJECT_BYTES = 40
_SMALL_TREE_BYTES = 1 << 20
_KINDS = {
    "file": Kind.FILE,
    "dir": Kind.DIR,
    "symlink": Kind.SYMLINK,
    "fifo": Kind.FIFO,
    "socket": Kind.SOCKET,
    "chardev": Kind.CHAR,
    "dev": Kind.BLOCK,
}

_U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_I63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Xattr(msgspec.Struct, gc=False):
    name: str
    value: bytes | None = None


class StoredNode(msgspec.Struct, gc=False):
    """A node as it stands in the JSON of a tree. Members that we do not restore are left out."""

    name: str
    type: str
    mode: _U32 = 0
    mtime: str = "1970-01-01T00:00:00Z"
    atime: str = ""
    uid: _U32 = 0
    gid: _U32 = 0
    inode: int = 0
    device_id: int = 0
    size: _I63 = 0
    links: int = 0
    linktarget: str = ""
    linktarget_raw: bytes | None = None
    extended_attributes: list[_Xattr] | None = None
    device: int = 0
    content: msgspec.Raw = msgspec.Raw(b"null")
    subtree: str | None = None


class _Tree(msgspec.Struct):
    nodes: list[StoredNode] | None = None


class _LooseTree(msgspec.Struct):
    nodes: list[msgspec.Raw] | None = None


class Folder(NamedTuple):
    """A folder of a tree: its node, and the id of the tree that holds its entries."""

    node: Node
    subtree: bytes


_tree_decoder = msgspec.json.Decoder(_Tree)
_loose_decoder = msgspec.json.Decoder(_LooseTree)
_node_decoder = msgspec.json.Decoder(StoredNode)
_ids_decoder = msgspec.json.Decoder(list[str] | None)
# restic's chunker cuts runs of zeros into chunks of its smallest size (restic, internal/repository, ZeroChunk).
_ZERO_CHUNK_BYTES = 512 << 10
_ZERO_CHUNK = hashlib.sha256(bytes(_ZERO_CHUNK_BYTES)).digest()
_SPARSE_IDS_BYTES = 2 * 32
_FAULTS = (msgspec.MsgspecError, ValueError, RecursionError)


def nodes(text: bytes, parent: bytes) -> Iterator[Node | Folder | Problem]:
    """The entries of a tree below the path ``parent``. Raises ``ContentError`` where it is no tree at all."""
    seen: set[bytes] = set()
    for stored in _decode(text):
        if isinstance(stored, Problem):
            yield Problem(_join(parent, stored.path), stored.errno, stored.detail)
            continue
        try:
            name = _checked(names.unquote(stored.name), parent)
        except ValueError as error:
            yield Problem(_join(parent, _printable(stored.name)), errno.EBADMSG, str(error))
            continue
        path = parent + b"/" + name if parent else name
        if name in seen:
            yield Problem(path, errno.EBADMSG, "the name appears twice in its folder")
            continue
        seen.add(name)
        try:
            yield _node(stored, path)
        except ValueError as error:
            yield Problem(path, errno.EBADMSG, str(error))


def unix_mode(go_mode: int) -> int:
    """Permission bits with setuid, setgid and sticky (0o7777) of a Go ``FileMode``."""
    mode = go_mode & 0o777
    if go_mode & (_GO_SETUID | _GO_SETGID | _GO_STICKY):
        mode |= 0o4000 if go_mode & _GO_SETUID else 0
        mode |= 0o2000 if go_mode & _GO_SETGID else 0
        mode |= 0o1000 if go_mode & _GO_STICKY else 0
    return mode


def blob_ids(raw: bytes) -> bytes:
    """The ids (32 bytes each) of a JSON array of hexadecimal strings, ``null`` is empty. Raises ``ValueError``."""
    if raw in (b"null", b"[]"):
        return b""
    count = (len(raw) - 1) // 67
    # The one form that restic writes needs no objects at all: a hostile list cannot blow up in memory.
    if len(raw) == 67 * count + 1 and raw[:2] == b'["' and raw[-2:] == b'"]' and raw.count(b'","') == count - 1:
        ids = bytes.fromhex(raw[2:-2].replace(b'","', b"").decode("ascii"))
        if len(ids) == 32 * count:
            return ids
    if raw.count(b",") > len(raw) // 64:
        raise ValueError("malformed list of blobs")
    listed = _ids_decoder.decode(raw) or []
    if any(len(one) != 64 for one in listed):
        raise ValueError("malformed blob id")
    return bytes.fromhex("".join(listed))


def _decode(text: bytes) -> Iterator[StoredNode | Problem]:
    if len(text) > _SMALL_TREE_BYTES and text.count(b"{") * _MIN_OBJECT_BYTES > len(text):
        raise ContentError("a tree with absurdly many entries")
    try:
        yield from _tree_decoder.decode(text).nodes or ()
        return
    except _FAULTS:
        pass
    # One bad node must not hide the others: decode them one by one.
    try:
        loose = _loose_decoder.decode(text).nodes or ()
    except _FAULTS as error:
        raise ContentError(f"not a tree: {error}") from error
    for position, raw in enumerate(loose):
        try:
            yield _node_decoder.decode(raw)
        except _FAULTS as error:
            yield Problem(b"(entry %d)" % position, errno.EBADMSG, f"malformed node: {error}")


def _node(stored: StoredNode, path: bytes) -> Node | Folder | Problem:
    kind = _KINDS.get(stored.type)
    if kind is None:
        return Problem(path, errno.EBADMSG, f"a node of type {stored.type[:20]!r} cannot be restored")
    mtime_ns = _time_ns(stored.mtime)
    content = blob_ids(bytes(stored.content)) if kind is Kind.FILE else b""
    node = Node(
        path=path,
        kind=kind,
        mode=unix_mode(stored.mode),
        uid=stored.uid,
        gid=stored.gid,
        mtime_ns=mtime_ns,
        atime_ns=mtime_ns if stored.atime in ("", stored.mtime) else _time_ns(stored.atime),
        size=stored.size if kind is Kind.FILE else 0,
        link_target=_link_target(stored) if kind is Kind.SYMLINK else b"",
        rdev=_u64(stored.device) if kind in (Kind.CHAR, Kind.BLOCK) else 0,
        xattrs=_xattrs(stored.extended_attributes) if stored.extended_attributes else (),
        link_key=_link_key(stored) if stored.links > 1 and kind is not Kind.DIR else None,
        content=content,
        holes=content.count(_ZERO_CHUNK) * _ZERO_CHUNK_BYTES if len(content) >= _SPARSE_IDS_BYTES else 0,
    )
    if kind is not Kind.DIR:
        return node
    subtree = bytes.fromhex(stored.subtree or "")
    if len(subtree) != 32:
        return Problem(path, errno.EBADMSG, "a folder without a tree")
    return Folder(node, subtree)


def _checked(name: bytes, parent: bytes) -> bytes:
    """The name if it can be one. Raises ``ValueError``."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise ValueError("a name that no file can have")
    if len(name) > _MAX_NAME_BYTES or len(parent) + len(name) >= MAX_PATH_BYTES:
        raise ValueError("a name or path that is too long")
    return name


def _printable(name: str) -> bytes:
    """A hostile name in a form that is no path: for messages only."""
    escaped = ascii(name[:_MAX_NAME_BYTES])[1:-1].replace("/", "\\x2f").encode()
    return escaped if escaped not in (b"", b".", b"..") else b"(%s)" % escaped


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _time_ns(text: str) -> int:
    # Outside of +-2^63 ns (the years 1677 to 2262) no catalog and hardly a file system can hold it.
    return max(-_MAX_TIME_NS, min(_MAX_TIME_NS, moments.parse(text)))


def _link_target(stored: StoredNode) -> bytes:
    target = stored.linktarget.encode() if stored.linktarget_raw is None else stored.linktarget_raw
    if not target or b"\0" in target or len(target) > MAX_PATH_BYTES:
        raise ValueError("a symlink to nowhere")
    return target


def _link_key(stored: StoredNode) -> tuple[int, int] | None:
    return (_u64(stored.device_id), _u64(stored.inode)) if stored.inode else None


def _xattrs(stored: list[_Xattr]) -> tuple[tuple[bytes, bytes], ...]:
    pairs = tuple((xattr.name.encode(), xattr.value or b"") for xattr in stored)
    for name, value in pairs:
        if not name or b"\0" in name or len(name) > _MAX_NAME_BYTES or len(value) > 65536:
            raise ValueError("an extended attribute that no file can have")
    return tuple(sorted(pair for pair in pairs if pair[0] != _MARKER))


def _u64(number: int) -> int:
    if not 0 <= number < 2**64:
        raise ValueError("a number that does not fit in 64 bits")
    return number
