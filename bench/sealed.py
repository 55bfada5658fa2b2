"""Where the time of a file of one blob goes, and of a password: ``python -m bench.sealed [KIB]``.

Medians; the files are written below ``/var/tmp`` and removed.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 2000
# As restic chooses them for half a second on a processor of these days.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 32768, 8, 3


def main() -> None:
    """Of one size, half of it compressible, in the cache of the processor."""
    size = int(sys.argv[1] if len(sys.argv) > 1 else "36") << 10
    rng = random.Random(1)
    words = [rng.randbytes(4).hex().encode() for _ in range(1000)]
    plain = (rng.randbytes(size // 2) + b" ".join(rng.choices(words, k=size // 16)))[:size]
    sealed = zstandard.ZstdCompressor(level=3).compress(plain)
    key, nonce = rng.randbytes(32), bytes(16)
    tag = Poly1305.generate_tag(key, sealed)
    cipher = Cipher(algorithms.AES(key), modes.CTR(nonce)).decryptor()
    inflate = zstandard.ZstdDecompressor().decompress

    def decrypt() -> None:
        cipher.reset_nonce(nonce)
        cipher.update(sealed)

    numbers = itertools.count()

    def write() -> None:
        fd = os.open(f"{place}/{next(numbers)}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        os.pwrite(fd, plain, 0)
        os.fchown(fd, 0, 0)
        os.utime(fd, ns=(1, 1))
        os.close(fd)

    stages: dict[str, Callable[[], object]] = {
        "Poly1305": lambda: Poly1305.verify_tag(key, sealed, tag),
        "AES-256-CTR": decrypt,
        "zstd": lambda: inflate(sealed, max_output_size=size),
        "SHA-256": lambda: hashlib.sha256(plain).digest(),
        "file": write,
    }
    print(f"a blob of {size >> 10} KiB, {len(sealed) >> 10} KiB sealed")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        for name, stage in stages.items():
            print(f"{name:12} {_median_us(stage):6.1f} us")
    began = time.perf_counter()
    hashlib.scrypt(b"password", salt=bytes(64), n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, dklen=64, maxmem=256 << 20)
    print(f"{'scrypt':12} {time.perf_counter() - began:6.2f} s")


def _median_us(stage: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        stage()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e6


if __name__ == "__main__":
    main()
