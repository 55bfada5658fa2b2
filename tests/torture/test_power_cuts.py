"""Power cuts while a restore runs with a reader and a writer: 504 in CI (TORTURE_CUTS), on ext4, xfs and btrfs.

Each lane records one restore on a disk that notes every write and flush (``power``), then cuts it at seeded moments: right
behind a flush, or anywhere, with any part of what was not flushed. Every image is mounted; ``resume`` finishes, ``verify``
finds nothing changed but what the user changed, what the user had synced is there, and no file without a marker has ever
anything but its content. Now and then the state directory is lost, too; in every second lane it has a disk of its own. The
source is a directory or a repository of restic.

``make torture`` goes on for TORTURE_SECONDS; TORTURE_SEED repeats a choice of deeds and cuts (moments are the machine's).
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.kernel.disks import KINDS
from tests.kernel.tasks import Task
from tests.torture.lanes import Lane, side_by_side
from tests.torture.power.journal import Images, Journal
from tests.torture.power.lane import made, mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = "tests.torture.power.lane"
_CUTS = int(os.environ.get("TORTURE_CUTS", "504"))
_LANES = (
    ("ext4", 1, "dir"),
    ("xfs", 1, "restic"),
    ("btrfs", 1, "dir"),
    ("ext4", 2, "restic"),
    ("xfs", 2, "dir"),
    ("btrfs", 2, "restic"),
)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory without a disk under it: images are copied hundreds of times."""
    place = tmp_path / "memory"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6g", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        # With what a lane that failed has left mounted in it.
        subprocess.run(["umount", "--recursive", "--lazy", place], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_is_not_seen_through_the_last_one(tmp_path: Path, kind: str) -> None:
    """A mount namespace that was made meanwhile (by another test, or by the machine) keeps the file system of a cut alive."""
    empty, cut, mount, log = (tmp_path / name for name in ("empty", "cut", "mount", "log"))
    made(kind, empty)
    mount.mkdir()
    log.touch()
    images = Images(Journal(log), [empty], [cut])
    images.cut(0, random.Random(1), 0.0)
    with mounted(kind, [cut], [mount]):
        (mount / "written").touch()
        keeper = Task("unshare", "--mount", "sh", "-c", "echo there; read end")
        assert keeper.line() == b"there\n"
    with keeper:
        images.cut(0, random.Random(1), 0.0)
        with mounted(kind, [cut], [mount]):
            assert not (mount / "written").exists()


@pytest.mark.timeout(0)
def test_power_cuts(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("TORTURE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    end = time.monotonic() + float(os.environ.get("TORTURE_SECONDS", "0"))
    counts: Counter[str] = Counter()
    for round_ in itertools.count():
        if round_ and time.monotonic() > end:
            break
        counts += _round(memory / str(round_), seed + round_)
        with capsys.disabled():
            print(f"\nTORTURE_SEED={seed + round_}: {counts['cuts']} power cuts so far: {dict(counts)}", end="", flush=True)
    assert counts["cuts"] >= _CUTS


def _round(place: Path, seed: int) -> Counter[str]:
    """All lanes side by side; what they counted."""
    cuts = str(-(-_CUTS // len(_LANES)))
    lanes = [
        Lane(f"{kind}-{disks}", MODULE, (kind, str(seed * len(_LANES) + number), cuts, str(disks), source))
        for number, (kind, disks, source) in enumerate(_LANES)
    ]
    return side_by_side(lanes, place)
