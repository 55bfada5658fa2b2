"""Files by range: who opens one goes on, who reads gets the right bytes, and the end is that of any restore."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from typing import TYPE_CHECKING

from active_restore.linux import fiemap
from active_restore.predict.order import FILE_NAME, Order, Touch, encode
from tests.kernel.rig import MIB, marked
from tests.kernel.tasks import Task, python
from tests.kernel.waiting import wait_until
from tests.ranges.readers import READERS
from tests.ranges.test_fsx import from_restic

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

SIZE = 12 * MIB + 1234
OPTIONS = ("--ranges", "big", "--range-threshold", "1MiB")
OLD_NS = 1_500_000_000_123_456_789
SPANS = ((SIZE // 2 - 3000, MIB), (0, 10), (SIZE - 5000, 5000), (5 * MIB + 3, 300_000))


def make(path: Path, size: int = SIZE) -> bytes:
    """A file with a hole in its middle; its content."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.write(os.urandom(size // 2))
        file.seek(size // 10 + 777, os.SEEK_CUR)
        file.write(os.urandom(size - file.tell()))
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path.read_bytes()


def paused(rig: Rig, target: Path) -> None:
    """The background rests: what is there was wanted by somebody."""
    with rig.control(target) as client:
        client.pause()


def test_every_way_to_read(rig: Rig, target: Path) -> None:
    contents = {how: make(rig.tree / "big" / how) for how in READERS}
    command = rig.restore(target, *OPTIONS, "--limit", "1")
    paused(rig, target)
    for how, code in READERS.items():
        for start, length in SPANS:
            out = python(code, target / "big" / how, str(start), str(length))
            assert out.decode().strip() == hashlib.sha256(contents[how][start : start + length]).hexdigest(), how
        assert marked(target / "big" / how)
        assert os.stat(target / "big" / how).st_mtime_ns == OLD_NS, how
    with rig.control(target) as client:
        ranges = client.status().ranges
    assert (ranges.mechanism, ranges.files) == ("pre-content events", len(READERS))
    assert len(READERS) * MIB < ranges.bytes_present < ranges.bytes_total == len(READERS) * SIZE
    assert 0 < ranges.bytes_wanted <= ranges.bytes_present
    assert f"{len(READERS)} files by range (by pre-content events, mappings " in rig.run("status", target).stdout
    rig.finish(command, target)
    rig.verify(target)
    report = json.loads(rig.run("report", target, "--json").stdout)
    assert report["ranges"] == {"files": len(READERS), "bytes": len(READERS) * SIZE, "bytes_wanted": ranges.bytes_wanted}
    assert "came because tasks wanted them" in rig.run("report", target).stdout


def test_hot_file_is_finished_first(rig: Rig, ext4_target: Path) -> None:
    """As long as it is not whole, each read of it is asked about."""
    names = ("first", "hot", "second")
    contents = {name: make(rig.tree / "big" / name, 2 * SIZE) for name in names}
    command = rig.restore(ext4_target, *OPTIONS, "--limit", "1")
    paused(rig, ext4_target)
    reads = "fd = os.open(sys.argv[1], 0)\nfor at in range(23, 0, -1): os.pread(fd, 1, at << 20)"
    python(reads, ext4_target / "big" / "hot")
    with rig.control(ext4_target) as client:
        client.limit(16 << 20)
        client.proceed()
        wait_until(lambda: not marked(ext4_target / "big" / "hot"), "the hot file is whole")
        assert [name for name in names if marked(ext4_target / "big" / name)] == ["first", "second"]
    rig.finish(command, ext4_target)
    for name, content in contents.items():
        assert (ext4_target / "big" / name).read_bytes() == content
    rig.verify(ext4_target)


def test_exec_and_what_attaches_files_wait_for_all_of_it(rig: Rig, ext4_target: Path) -> None:
    """A loop device reads its file past every hook, and an executable is mapped past them."""
    place = rig.tree / "big"
    place.mkdir()
    with open("/bin/true", "rb") as true, open(place / "true", "wb") as program:
        program.write(true.read() + os.urandom(2 * MIB))
    (place / "true").chmod(0o755)
    content = make(place / "image", 4 * MIB)
    command = rig.restore(ext4_target, *OPTIONS, "--limit", "1")
    paused(rig, ext4_target)
    with Task(ext4_target / "big" / "true") as task:
        assert task.finish()[0] == 0
    assert not marked(ext4_target / "big" / "true")
    argv = ["losetup", "--find", "--show", "--read-only", str(ext4_target / "big" / "image")]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        with open(device, "rb") as file:
            assert file.read() == content
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    rig.finish(command, ext4_target)
    rig.verify(ext4_target)


def test_through_a_file_system_above_all_is_wanted(rig: Rig, ext4_target: Path) -> None:
    """Who maps a file of an overlay maps the lower one, and nobody is told which part of it."""
    content = make(rig.tree / "big" / "file")
    command = rig.restore(ext4_target, *OPTIONS, "--limit", "1")
    paused(rig, ext4_target)
    place = ext4_target.with_name(f"{ext4_target.name}-overlay")
    for name in ("upper", "work", "merged"):
        (place / name).mkdir(parents=True)
    layers = f"lowerdir={ext4_target},upperdir={place}/upper,workdir={place}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, place / "merged"], check=True)
    try:
        words = (READERS["mmap"], place / "merged" / "big" / "file", "5000000", "10000")
        assert python(*words).decode().strip() == hashlib.sha256(content[5_000_000:5_010_000]).hexdigest()
    finally:
        subprocess.run(["umount", place / "merged"], check=True)
    assert not marked(ext4_target / "big" / "file")
    rig.finish(command, ext4_target)
    rig.verify(ext4_target)


def test_damage_refuses_what_touches_it(rig: Rig, ext4_target: Path) -> None:
    """One blob is bad: reads that need it get EIO, all others what they want, also when they are read ahead over it."""
    content = make(rig.tree / "big" / "file")
    from_restic(rig)
    packs = sorted((rig.place / "repository" / "data").rglob("*/*"), key=lambda pack: pack.stat().st_size)
    with open(packs[-1], "r+b") as pack:
        pack.seek(packs[-1].stat().st_size // 2)
        pack.write(b"damage")
    command = rig.restore(ext4_target, *OPTIONS, "--limit", "1")
    paused(rig, ext4_target)
    read = "\n".join(
        [
            "fd, good, bad = os.open(sys.argv[1], os.O_RDONLY), 0, 0",
            "content = open(sys.argv[2], 'rb').read()",
            "for at in range(0, len(content), 65536):",
            "    try:",
            "        assert os.pread(fd, 65536, at) == content[at : at + 65536]",
            "        good += 1",
            "    except OSError as error:",
            "        assert error.errno == 5",
            "        bad += 1",
            "print(good, bad)",
        ]
    )
    words = (read, ext4_target / "big" / "file", rig.tree / "big" / "file")
    good, bad = (int(word) for word in python(*words).split())
    assert bad > 0
    # A blob has at most 8 MiB.
    assert good > len(content) // 65536 // 4
    rig.finish(command, ext4_target, expected=3)
    # The agent is gone: what is there can be read, the rest is refused.
    assert [int(word) for word in python(*words).split()] == [good, bad]
    assert rig.run("release", ext4_target).returncode == 0
    rig.kill("ar-standby")
    rig.kill("ar-keeper")


def test_recorded_ranges_come_first(rig: Rig, ext4_target: Path) -> None:
    """The background, which a limit stops after its first step, begins with them."""
    content = make(rig.tree / "big" / "file", 5 * SIZE)
    start, length = 37 * MIB, 300_000
    touches = (Touch(b"big/file", "", 1, ((start, length),)),)
    (rig.tree / os.fsdecode(FILE_NAME)).write_bytes(encode(Order(0, touches)))
    (rig.place / "agent.toml").write_text('[restore]\nranges = ["big"]\nrange_threshold = "1MiB"\n')
    command = rig.restore(ext4_target, "--limit", "1")

    def there() -> int:
        with rig.control(ext4_target) as client:
            return client.status().ranges.bytes_present

    wait_until(there, "the background has begun")
    assert there() <= 4 * MIB
    path = ext4_target / "big" / "file"
    with path.open("rb") as file:
        assert [1 for begin, end in fiemap.written(file.fileno()) if begin <= start and start + length <= end]
    assert marked(path)
    rig.finish(command, ext4_target)
    assert path.read_bytes() == content
    rig.verify(ext4_target)
