"""Data for the benchmark: the same bytes on every machine, from a seed; about half of it can be compressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_POOL_BYTES = 64 << 20
_BLOCK_BYTES = 8 << 20
_FILES_OF_A_DIRECTORY = 100
_SMALL_MEDIAN_BYTES = 4 << 10
_SMALL_SPREAD = 2.1
_SMALL_MAX_BYTES = 32 << 20
_MTIME_NS = 1_600_000_000_123_456_789


class Pool:
    """Bytes to cut files from: one half noise, one half with an alphabet of sixteen letters."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._noise = self.rng.bytes(_POOL_BYTES)
        self._letters = self.rng.integers(97, 113, _POOL_BYTES, np.uint8).tobytes()

    def cut(self, size: int) -> bytes:
        """``size`` bytes that no other file has."""
        half = size // 2
        at, other = (int(place) for place in self.rng.integers(0, _POOL_BYTES - size, 2))
        return self._noise[at : at + half] + self._letters[other : other + size - half]


def small_sizes(files: int, seed: int) -> list[int]:
    """Sizes like those of a root file system: most of a few KiB, few of many MiB, 36 KiB on average (log-normal)."""
    drawn = np.random.default_rng(seed).lognormal(np.log(_SMALL_MEDIAN_BYTES), _SMALL_SPREAD, files)
    return [int(size) for size in np.clip(drawn, 1, _SMALL_MAX_BYTES)]


def make_files(root: Path, sizes: list[int], seed: int) -> None:
    """Files of these sizes, a hundred in a directory."""
    pool = Pool(seed)
    for number, size in enumerate(sizes):
        directory = root / f"d{number // _FILES_OF_A_DIRECTORY:05d}"
        if number % _FILES_OF_A_DIRECTORY == 0:
            directory.mkdir(parents=True)
        (directory / f"f{number:06d}").write_bytes(pool.cut(size))


def make_big_files(root: Path, count: int, size: int, seed: int) -> None:
    """Files of ``size`` bytes; blocks of noise and of letters take turns."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    for number in range(count):
        with (root / f"big{number}").open("wb") as file:
            for block in _blocks(rng, size):
                file.write(block)


def _blocks(rng: np.random.Generator, size: int) -> Iterator[bytes]:
    for number, start in enumerate(range(0, size, _BLOCK_BYTES)):
        length = min(_BLOCK_BYTES, size - start)
        yield rng.bytes(length) if number % 2 else rng.integers(97, 113, length, np.uint8).tobytes()


def placeholder_list(count: int) -> list[tuple[str, list[tuple[str, int, int]]]]:
    """Names for laying: (directory, [(name, size, mtime in ns)])."""
    sizes = small_sizes(count, seed=7)
    found: list[tuple[str, list[tuple[str, int, int]]]] = []
    for number, size in enumerate(sizes):
        if number % _FILES_OF_A_DIRECTORY == 0:
            found.append((f"d{number // _FILES_OF_A_DIRECTORY:05d}", []))
        found[-1][1].append((f"f{number:06d}", size, _MTIME_NS + number))
    return found
