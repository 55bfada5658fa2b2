"""A writer of restic repositories for tests: every byte of them can be a lie.

Format: restic ``doc/design.rst``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

from active_restore.source.restic.keys import open_keys
from active_restore.source.restic.repository import ResticSource
from active_restore.source.restic.seal import MasterKeys
from active_restore.store import location
from active_restore.store.local import LocalStore

if TYPE_CHECKING:
    from pathlib import Path

KEYS = MasterKeys(b"e" * 32, b"k" * 16, b"r" * 16)
TIME = "2024-05-06T07:08:09.123456789Z"


def seal(plain: bytes, keys: MasterKeys = KEYS) -> bytes:
    """``IV || ciphertext || MAC``."""
    nonce = os.urandom(16)
    ciphertext = Cipher(algorithms.AES(keys.encrypt), modes.CTR(nonce)).encryptor().update(plain)
    pad = Cipher(algorithms.AES(keys.mac_k), modes.ECB()).encryptor().update(nonce)
    return nonce + ciphertext + Poly1305.generate_tag(keys.mac_r + pad, ciphertext)


class Entry(NamedTuple):
    """A blob of a pack as the header and the index tell of it."""

    id: bytes
    kind: int
    offset: int
    length: int
    plain_length: int


class Forge:
    """A repository below ``root``. Blobs go into one pack until ``finish`` writes pack, index and snapshot."""

    def __init__(self, root: Path, version: int = 2) -> None:
        self.root = root
        self.version = version
        self.entries: list[Entry] = []
        self.supersedes: list[str] = []
        self._pack = bytearray()
        for folder in ("data", "index", "keys", "snapshots", "locks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "config").write_bytes(seal(json.dumps({"version": version, "id": "00" * 32}).encode()))

    def blob(self, plain: bytes, *, tree: bool = False, pack_as: bytes | None = None, blob_id: bytes | None = None) -> str:
        """Add a blob; its id. ``pack_as`` is what is really compressed in its place, ``blob_id`` a false id."""
        stored = plain if self.version == 1 else zstandard.compress(plain if pack_as is None else pack_as)
        sealed = seal(stored)
        blob_id = blob_id or hashlib.sha256(plain).digest()
        plain_length = 0 if self.version == 1 else len(plain)
        self.entries.append(Entry(blob_id, int(tree), len(self._pack), len(sealed), plain_length))
        self._pack += sealed
        return blob_id.hex()

    def tree(self, *nodes: dict[str, Any]) -> str:
        """Add a tree of nodes; its id."""
        return self.blob(json.dumps({"nodes": list(nodes)}, separators=(",", ":")).encode() + b"\n", tree=True)

    def flush(self, *, with_index: bool = True, header: bytes | None = None) -> str:
        """Write the pack with its header, and an index file of it; the name of the pack."""
        sealed = seal(self.header() if header is None else header)
        whole = bytes(self._pack) + sealed + struct.pack("<I", len(sealed))
        name = hashlib.sha256(whole).hexdigest()
        (self.root / "data" / name[:2]).mkdir(exist_ok=True)
        (self.root / "data" / name[:2] / name).write_bytes(whole)
        if with_index:
            self.index([{"id": name, "blobs": [self._listed(entry) for entry in self.entries]}])
        self._pack.clear()
        self.entries.clear()
        return name

    def header(self) -> bytes:
        """The plaintext of the header of the pack so far."""
        out = b""
        for entry in self.entries:
            if entry.plain_length:
                out += struct.pack("<BII32s", entry.kind + 2, entry.length, entry.plain_length, entry.id)
            else:
                out += struct.pack("<BI32s", entry.kind, entry.length, entry.id)
        return out

    def index(self, packs: list[dict[str, Any]], supersedes: list[str] | None = None) -> str:
        """Write an index file; its name."""
        return self.document("index", {"packs": packs, "supersedes": supersedes or self.supersedes})

    def snapshot(self, tree: str, time: str = TIME) -> str:
        """Write a snapshot; its name."""
        return self.document("snapshots", {"time": time, "tree": tree, "paths": ["/x"], "hostname": "forge"})

    def document(self, folder: str, content: Any) -> str:
        """Write a sealed JSON document; its name."""
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        sealed = seal(text if self.version == 1 else b"\x02" + zstandard.compress(text))
        name = hashlib.sha256(sealed).hexdigest()
        (self.root / folder / name).write_bytes(sealed)
        return name

    def finish(self, *nodes: dict[str, Any]) -> ResticSource:
        """A snapshot of one tree with these nodes; the opened source."""
        tree = self.tree(*nodes)
        self.flush()
        self.snapshot(tree)
        return self.source()

    def source(self) -> ResticSource:
        """The repository, opened without any key file."""
        return ResticSource(location.parse(str(self.root), {}), KEYS)

    def key(self, password: str, **changes: Any) -> None:
        """Write a key file that opens quickly."""
        write_key(self.root, password, KEYS, **changes)

    def _listed(self, entry: Entry) -> dict[str, Any]:
        listed = {"id": entry.id.hex(), "type": ("data", "tree")[entry.kind], "offset": entry.offset, "length": entry.length}
        return listed | ({"uncompressed_length": entry.plain_length} if entry.plain_length else {})


def write_key(root: Path, password: str, keys: MasterKeys, **changes: Any) -> None:
    """A key file that opens quickly, whatever else there is."""
    salt = b"s" * 64
    secret = hashlib.scrypt(password.encode(), salt=salt, n=16, r=1, p=1, dklen=64)
    user = MasterKeys(secret[:32], secret[32:48], secret[48:])
    master = {"mac": {"k": _base64(keys.mac_k), "r": _base64(keys.mac_r)}, "encrypt": _base64(keys.encrypt)}
    sealed = _base64(seal(json.dumps(master).encode(), user))
    text = {"kdf": "scrypt", "N": 16, "r": 1, "p": 1, "salt": _base64(salt), "data": sealed} | changes
    raw = json.dumps(text).encode()
    (root / "keys" / hashlib.sha256(raw).hexdigest()).write_bytes(raw)


def quicken(root: Path, password: str) -> None:
    """Let a repository that restic made open at once: for tests that open it hundreds of times."""
    keys = open_keys(LocalStore(str(root)), password.encode())
    for path in (root / "keys").iterdir():
        path.unlink()
    write_key(root, password, keys)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def node(name: str, kind: str = "file", **members: Any) -> dict[str, Any]:
    """A node as restic writes it."""
    plain = {"name": name, "type": kind, "mode": 0o644, "mtime": TIME, "atime": TIME, "ctime": TIME, "uid": 0, "gid": 0}
    return plain | {"content": [] if kind == "file" else None} | members
