"""Directory trees with everything that a file system can hold, and their comparison."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import stat
import struct
from typing import TYPE_CHECKING, Any

from active_restore.errors import ContentError
from active_restore.model import FileRef, Kind, Node, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from active_restore.source.base import Reader, Source

MIB = 1 << 20
SMALL_FILES = 300
STRANGE_NAMES = (
    b"caf\xc3\xa9",
    b"latin\xe9-\xff\xfe",
    b'quote"and\\backslash',
    b"line\nfeed\ttab\x01\x7f",
    b"\xe2\x80\xa8separator <&> \xf0\x9f\x90\xa7",
    b" leading and trailing ",
    b"x" * 255,
)


def fill(root: Path) -> Path:
    """A tree of about 12 MiB and 350 entries, always the same. Needs root for devices and capabilities."""
    chance = random.Random(2)
    top = os.fsencode(root)
    os.makedirs(top, exist_ok=True)
    _files(top, chance)
    _special(top)
    for number, name in enumerate(STRANGE_NAMES):
        _write(top + b"/names-" + b"%d" % number, b"")
        os.mkdir(top + b"/strange" if number == 0 else top + b"/strange%d" % number)
        folder = top + b"/strange" if number == 0 else top + b"/strange%d" % number
        _write(folder + b"/" + name, b"content of %d" % number)
    _metadata(top)
    return root


def _files(top: bytes, chance: random.Random) -> None:
    _write(top + b"/empty", b"")
    _write(top + b"/one", b"1")
    _write(top + b"/random", chance.randbytes(3 * MIB + 77))
    # Longer than the longest blob (8 MiB): it has several, however the repository's own chunker cuts.
    _write(top + b"/text", b"".join(b"line %d of a text\n" % number for number in range(420_000)))
    os.mkdir(top + b"/small")
    for number in range(SMALL_FILES):
        _write(top + b"/small/f%03d" % number, chance.randbytes(chance.randrange(1, 20_000)))
    _write(top + b"/copy", b"twice the same content\n" * 3000)
    _write(top + b"/again", b"twice the same content\n" * 3000)
    with open(top + b"/sparse", "wb") as file:
        file.truncate(6 * MIB)
        file.seek(4 * MIB)
        file.write(b"island")
    os.makedirs(top + b"/deep/" + b"/".join([b"d"] * 30))
    _write(top + b"/deep/" + b"/".join([b"d"] * 30) + b"/bottom", b"down here")
    os.mkdir(top + b"/hollow")


def _special(top: bytes) -> None:
    _write(top + b"/linked", b"three names")
    os.link(top + b"/linked", top + b"/linked2")
    os.link(top + b"/linked", top + b"/small/linked3")
    os.symlink(b"random", top + b"/symlink")
    os.symlink(b"/nowhere/at all", top + b"/dangling")
    os.mkfifo(top + b"/fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fsdecode(top + b"/socket"))
    os.mknod(top + b"/char", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(top + b"/block", 0o660 | stat.S_IFBLK, os.makedev(7, 300))


def _metadata(top: bytes) -> None:
    for number, mode in enumerate((0o4755, 0o2755, 0o1777, 0o000, 0o7777, 0o640)):
        _write(top + b"/mode%d" % number, b"m")
        os.chown(top + b"/mode%d" % number, 1000 + number, 70_000)
        os.chmod(top + b"/mode%d" % number, mode)
    os.chmod(top + b"/hollow", 0o3770)
    _write(top + b"/attributes", b"a")
    os.setxattr(top + b"/attributes", b"user.binary", bytes(range(256)))
    os.setxattr(top + b"/attributes", b"user.empty", b"")
    os.setxattr(top + b"/attributes", b"security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
    os.setxattr(top + b"/attributes", b"trusted.active_restore", b"a marker of ours")
    os.setxattr(top + b"/attributes", b"system.posix_acl_access", _acl(1000))
    os.setxattr(top + b"/hollow", b"system.posix_acl_default", _acl(1001))
    for name, time_ns in ((b"old", -1_234_567_890_123_456_789), (b"zero", 0), (b"new", 4_102_444_800_000_000_001)):
        _write(top + b"/" + name, b"t")
        os.utime(top + b"/" + name, ns=(time_ns, time_ns))
    os.utime(top + b"/symlink", ns=(5, 1_000_000_007), follow_symlinks=False)
    os.utime(top + b"/small", ns=(1, 1_600_000_000_123_456_789))


def _acl(user: int) -> bytes:
    """An ACL with one named user (acl(5), linux/posix_acl_xattr.h)."""
    none = 0xFFFFFFFF
    entries = ((1, 6, none), (2, 4, user), (4, 4, none), (16, 4, none), (32, 0, none))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def nodes(items: Iterable[Node | Problem]) -> list[Node]:
    """The nodes of a walk, which must be without problems and in a good order."""
    found: list[Node] = []
    folders: set[bytes] = set()
    for item in items:
        assert isinstance(item, Node), item
        assert item.path == b"" or item.path.rpartition(b"/")[0] in folders, f"{item.path!r} comes before its folder"
        if item.kind is Kind.DIR:
            folders.add(item.path)
        found.append(item)
    return found


def ref(node: Node) -> FileRef:
    """What a reader needs of a node."""
    return FileRef(node.path, node.size, node.mtime_ns, node.content)


def content(reader: Reader, node: Node) -> bytes:
    """The whole content of a file by ``read``."""
    whole = bytearray(node.size)
    end = 0
    for piece in reader.read(ref(node)):
        assert piece.offset >= end
        end = piece.offset + len(piece.data)
        assert end <= node.size
        whole[piece.offset : end] = piece.data
    return bytes(whole)


def contents(reader: Reader, files: list[Node]) -> dict[bytes, bytes | ContentError]:
    """The whole content of many files by ``read_many``; checks that pieces come together and in order."""
    found: dict[bytes, bytes | ContentError] = {}
    current: int | None = None
    whole = bytearray()
    end = 0
    for position, item in reader.read_many([ref(node) for node in files]):
        node = files[position]
        assert node.path not in found, f"{node.path!r} goes on after its end"
        if current is None:
            current, whole, end = position, bytearray(node.size), 0
        assert current == position, "pieces of two files are mixed"
        if item is None or isinstance(item, ContentError):
            found[node.path] = bytes(whole) if item is None else item
            current = None
            continue
        assert item.offset >= end
        end = item.offset + len(item.data)
        whole[item.offset : end] = item.data
    assert current is None
    assert len(found) == len(files)
    return found


def fingerprint(source: Source, items: list[Node], *, subfolder: bytes = b"") -> dict[bytes, Any]:
    """All that must be equal after a restore, by path: metadata, hash of the content, groups of hard links.

    Not compared: access times, sockets (restic does not restore them), our own marker.
    """
    reader = source.reader()
    groups: dict[tuple[int, int], bytes] = {}
    found: dict[bytes, Any] = {}
    for node in sorted(items, key=lambda one: one.path):
        if not node.path or node.kind is Kind.SOCKET:
            continue
        group = groups.setdefault(node.link_key, node.path) if node.link_key else b""
        digest = hashlib.sha256(content(reader, node)).hexdigest() if node.kind is Kind.FILE else ""
        mode = node.mode if node.kind is not Kind.SYMLINK else 0
        found[node.path.removeprefix(subfolder)] = (
            node.kind, mode, node.uid, node.gid, node.mtime_ns, node.size, node.link_target, node.rdev,
            node.xattrs, group, digest,
        )  # fmt: skip
    reader.close()
    return found
