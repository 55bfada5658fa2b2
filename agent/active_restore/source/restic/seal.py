"""Opening what restic sealed: AES-256-CTR with Poly1305-AES, zstd, SHA-256.

Sources: restic ``doc/design.rst`` ("Keys, Encryption and MAC", "Unpacked Data Format"); D. J. Bernstein,
"The Poly1305-AES message-authentication code", section 2.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

import zstandard
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

from active_restore.errors import ContentError

OVERHEAD_BYTES = 32
MAX_UNPACKED_BYTES = 256 << 20
_MAX_WINDOW_BYTES = 512 << 20
_COMPRESSED_JSON = 2


class MasterKeys(NamedTuple):
    """The keys of a repository: AES-256 (32 bytes), and for the MAC the AES-128 key ``k`` and ``r`` (16 bytes each)."""

    encrypt: bytes
    mac_k: bytes
    mac_r: bytes


class Box:
    """Opens sealed bytes with one set of keys. Not for use by several threads at once: make one for each."""

    __slots__ = ("_ctr", "_mac_r", "_nonce", "_zstd")

    def __init__(self, keys: MasterKeys) -> None:
        # Made once and told the nonce of each blob: to make one takes as long as to decrypt 8 KiB.
        self._ctr = Cipher(algorithms.AES(keys.encrypt), modes.CTR(bytes(16))).decryptor()
        # One block at a time and no chaining, so ECB is the plain block function that Poly1305-AES asks for.
        self._nonce = Cipher(algorithms.AES(keys.mac_k), modes.ECB()).encryptor()
        self._mac_r = keys.mac_r
        self._zstd = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)

    def unseal(self, sealed: memoryview) -> bytes:
        """Plaintext of ``IV || ciphertext || MAC``. Raises ``ContentError`` where the MAC does not match."""
        if len(sealed) < OVERHEAD_BYTES:
            raise ContentError(f"sealed data is only {len(sealed)} bytes long")
        nonce = bytes(sealed[:16])
        ciphertext = sealed[16:-16]
        try:
            Poly1305.verify_tag(self._mac_r + self._nonce.update(nonce), ciphertext, bytes(sealed[-16:]))
        except InvalidSignature:
            raise ContentError("the authentication code does not match") from None
        self._ctr.reset_nonce(nonce)
        return self._ctr.update(ciphertext)

    def blob(self, sealed: memoryview, plain_length: int, blob_id: bytes) -> bytes:
        """The verified plaintext of a blob. ``plain_length`` is 0 for a blob that is not compressed, else its size.

        Raises ``ContentError``. Callers bound ``plain_length``: no more than that is ever allocated.
        """
        data = self.unseal(sealed)
        if plain_length:
            data = self._inflate(data, plain_length)
        if sha256(data).digest() != blob_id:
            raise ContentError(f"blob {blob_id.hex()[:16]} does not match its hash")
        return data

    def document(self, sealed: memoryview) -> bytes:
        """The JSON text of a sealed file (index, snapshot, config). Raises ``ContentError``."""
        data = self.unseal(sealed)
        if not data or data[0] != _COMPRESSED_JSON:
            return data
        declared = _content_size(data[1:])
        if declared > MAX_UNPACKED_BYTES:
            raise ContentError(f"compressed document of {declared} bytes is too large")
        try:
            return self._zstd.decompress(data[1:], max_output_size=declared or MAX_UNPACKED_BYTES)
        except zstandard.ZstdError as error:
            raise ContentError(f"compressed data is damaged: {error}") from error

    def _inflate(self, data: bytes, plain_length: int) -> bytes:
        # zstandard trusts the size in the frame header over max_output_size: a bomb must be refused before.
        if _content_size(data) not in (0, plain_length):
            raise ContentError("compressed blob declares another size than the index")
        try:
            plain = self._zstd.decompress(data, max_output_size=plain_length)
        except zstandard.ZstdError as error:
            raise ContentError(f"compressed blob is damaged: {error}") from error
        if len(plain) != plain_length:
            raise ContentError("compressed blob has another size than the index says")
        return plain


def _content_size(frame: bytes) -> int:
    """Size that a zstd frame declares, 0 where it declares none (RFC 8878, section 3.1.1.1)."""
    try:
        size = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as error:
        raise ContentError(f"compressed data is damaged: {error}") from error
    return max(size, 0)
