"""What a mapping may ever show is there before its task goes on: it may be made longer, and nobody is asked about that."""

from __future__ import annotations

import hashlib
import mmap
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.rig import MIB, marked
from tests.kernel.tasks import Task, python, run
from tests.ranges.maps import PAGE, WAYS
from tests.ranges.readers import READERS
from tests.ranges.test_reading import OPTIONS, SIZE, make, paused

if TYPE_CHECKING:
    from tests.kernel.rig import Rig

MAPS = Path(__file__).with_name("maps.py")


def shown(how: str, path: Path) -> list[list[str]]:
    """The sums of what a mapping shows, and where that begins."""
    return [line.split() for line in run(sys.executable, "-S", "-E", str(MAPS), how, path).decode().splitlines()]


def assert_shown(found: list[list[str]], content: bytes, how: str) -> None:
    for number, start in found:
        length = PAGE if how == "elsewhere" else len(content)
        assert number == hashlib.sha256(content[int(start) :][:length]).hexdigest(), how
    assert len(found) == (2 if how == "elsewhere" else 1)


def test_what_is_mapped_may_grow(rig: Rig, target: Path) -> None:
    """By mremap(2): in its place, moved, doubled, by a child; and by remap_file_pages(2) to any place of the file."""
    contents = {how: make(rig.tree / "big" / how) for how in WAYS}
    command = rig.restore(target, *OPTIONS, "--limit", "1")
    paused(rig, target)
    for how, content in contents.items():
        assert_shown(shown(how, target / "big" / how), content, how)
        assert marked(target / "big" / how)
    rig.finish(command, target)
    rig.assert_clean(target)


def test_what_lies_before_a_mapping_is_not_waited_for(rig: Rig, ext4_target: Path) -> None:
    """Unless it is shared, and by somebody who may write."""
    content = make(rig.tree / "big" / "file")
    command = rig.restore(ext4_target, *OPTIONS, "--limit", "1")
    paused(rig, ext4_target)
    start = SIZE - MIB
    words = (READERS["mmap"], ext4_target / "big" / "file", str(start), "1000")
    assert python(*words).decode().strip() == hashlib.sha256(content[start:][:1000]).hexdigest()
    with rig.control(ext4_target) as client:
        # The background may have had its first step by then.
        assert MIB <= client.status().ranges.bytes_wanted < SIZE // 2
        with open(ext4_target / "big" / "file", "r+b") as file, mmap.mmap(file.fileno(), PAGE, offset=MIB) as view:
            assert view[:] == content[MIB:][:PAGE]
        assert client.status().ranges.bytes_present == SIZE
    rig.finish(command, ext4_target)
    rig.assert_clean(ext4_target)


def test_through_fuse_all_is_wanted(rig: Rig, ext4_target: Path, tmp_path: Path) -> None:
    """The kernel maps a file for users of a FUSE file system whose server has passed it on; nobody is asked about these."""
    content = make(rig.tree / "big" / "file")
    command = rig.restore(ext4_target, *OPTIONS, "--limit", "1")
    paused(rig, ext4_target)
    mount = tmp_path / "passing"
    mount.mkdir()
    with Task(sys.executable, "-S", "-E", str(MAPS.with_name("passing.py")), ext4_target / "big" / "file", mount) as server:
        assert server.line() == b"mounted\n", server.finish()
        try:
            words = (READERS["mmap"], mount / "file", "5000000", "10000")
            assert python(*words).decode().strip() == hashlib.sha256(content[5_000_000:5_010_000]).hexdigest()
        finally:
            subprocess.run(["umount", mount], check=True)
        server.output()
    assert not marked(ext4_target / "big" / "file")
    rig.finish(command, ext4_target)
    rig.verify(ext4_target)
