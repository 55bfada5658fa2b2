"""Key files: a password opens one of them, and it holds the master keys.

Source: restic ``doc/design.rst``, "Keys, Encryption and MAC".
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

import msgspec

from active_restore.errors import ContentError, NoRepository, RepositoryDamaged, WrongPassword
from active_restore.source.restic.seal import Box, MasterKeys
from active_restore.store.base import ObjectNotFound, ObjectTruncated

if TYPE_CHECKING:
    from active_restore.store.base import Store

MAX_KEY_FILE_BYTES = 1 << 20
# restic itself asks for 60 MiB; more than this is an attack on our memory, not a key.
_MAX_SCRYPT_BYTES = 1 << 30
_MAX_KEYS = 100


class KeyFile(msgspec.Struct):
    """A file of ``keys/``: scrypt parameters and the sealed master keys (base64)."""

    kdf: str
    N: int
    r: int
    p: int
    salt: str
    data: str


class _Mac(msgspec.Struct):
    k: str
    r: str


class _Master(msgspec.Struct):
    mac: _Mac
    encrypt: str


def open_keys(store: Store, password: bytes) -> MasterKeys:
    """Try the password on each key file in turn (about half a second each).

    Raises ``NoRepository`` without any key file, ``WrongPassword`` where an intact key file refuses the password,
    ``RepositoryDamaged`` where no key file is intact.
    """
    names = [entry.name for entry in store.list("keys")][:_MAX_KEYS]
    if not names:
        raise NoRepository(f"{store.url} has no keys: this is no restic repository", "check the place and the prefix")
    refused = 0
    damage = ""
    for name in names:
        try:
            keys = _try_key(bytes(store.get(f"keys/{name}", MAX_KEY_FILE_BYTES)), password)
        except (ObjectNotFound, ObjectTruncated, ContentError) as error:
            damage = f"key {name[:8]}: {error}"
            continue
        if keys is not None:
            return keys
        refused += 1
    if not refused:
        raise RepositoryDamaged(f"no key of {store.url} is intact ({damage})", "restic check; restore keys/ from a copy")
    hint = "set RESTIC_PASSWORD, RESTIC_PASSWORD_FILE or RESTIC_PASSWORD_COMMAND"
    if damage:
        hint += f"; {damage}"
    raise WrongPassword(f"the password opens none of the {refused} keys of {store.url}", hint)


def derive(key: KeyFile, password: bytes) -> MasterKeys:
    """The user's keys of one key file: scrypt, 64 bytes. Raises ``ContentError`` for parameters that nobody uses."""
    if key.kdf != "scrypt":
        raise ContentError(f"unknown key derivation {key.kdf[:20]!r}")
    if min(key.N, key.r, key.p) < 1 or 128 * key.N * key.r > _MAX_SCRYPT_BYTES or key.p > 64:
        raise ContentError("absurd scrypt parameters")
    try:
        salt = base64.b64decode(key.salt, validate=True)
        # OpenSSL counts a little more than N * r blocks against the limit.
        memory = 128 * key.N * key.r + 128 * key.r * key.p + (1 << 20)
        secret = hashlib.scrypt(password, salt=salt, n=key.N, r=key.r, p=key.p, dklen=64, maxmem=memory)
    except ValueError as error:
        raise ContentError(f"unusable scrypt parameters: {error}") from error
    return MasterKeys(secret[:32], secret[32:48], secret[48:])


def _try_key(text: bytes, password: bytes) -> MasterKeys | None:
    """Master keys, ``None`` for a wrong password. Raises ``ContentError`` for a damaged key file."""
    try:
        key = msgspec.json.decode(text, type=KeyFile)
        sealed = base64.b64decode(key.data, validate=True)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ContentError(f"not a key file: {error}") from error
    box = Box(derive(key, password))
    try:
        plain = box.unseal(memoryview(sealed))
    except ContentError:
        return None
    try:
        master = msgspec.json.decode(plain, type=_Master)
        keys = MasterKeys(*(base64.b64decode(field) for field in (master.encrypt, master.mac.k, master.mac.r)))
    except (msgspec.MsgspecError, ValueError) as error:
        raise ContentError(f"unreadable master key: {error}") from error
    if tuple(map(len, keys)) != (32, 16, 16):
        raise ContentError("master keys have a wrong length")
    return keys
