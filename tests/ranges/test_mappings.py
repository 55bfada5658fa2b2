"""A mapping waits for what it shows, also when it is made to show more; or else for all that it may ever show."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.ebpf.growth import GROWN, Grown
from active_restore.ebpf.maps import Map
from active_restore.linux import bpffs
from active_restore.linux.files import BTRFS_MAGIC, filesystem_magic
from tests.kernel.rig import MIB, marked
from tests.kernel.tasks import Task, python, run
from tests.kernel.waiting import wait_until
from tests.ranges.maps import PAGE, START, WAYS
from tests.ranges.readers import READERS
from tests.ranges.test_fsx import from_restic
from tests.ranges.test_reading import OPTIONS, SIZE, make, paused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.machine import Command
    from tests.kernel.rig import Rig

MAPS = Path(__file__).with_name("maps.py")
LARGE = 4 * SIZE
GROW = """
sys.path.insert(0, sys.argv[1])
import hashlib, maps, mmap
data = maps.grown(os.open(sys.argv[2], os.O_RDONLY), 0, int(sys.argv[3]), mmap.MAP_SHARED)
print(hashlib.sha256(data).hexdigest())
"""


def summed(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def shown(how: str, path: Path) -> list[list[str]]:
    """The sums of what a mapping shows, and where that begins."""
    return [line.split() for line in run(sys.executable, "-S", "-E", str(MAPS), how, path).decode().splitlines()]


def assert_shown(found: list[list[str]], content: bytes, how: str) -> None:
    for number, start in found:
        length = PAGE if how == "elsewhere" else len(content)
        assert number == summed(content[int(start) :][:length]), how
    assert len(found) == (2 if how == "elsewhere" else 1)


@contextlib.contextmanager
def window(how: str, path: Path, content: bytes) -> Iterator[Task]:
    """A task that has mapped a page of the file, and grows its mapping when it is told to."""
    with Task(sys.executable, "-S", "-E", str(MAPS), how, path, "wait") as task:
        assert task.line().decode().strip() == summed(content[START:][:PAGE]), task.finish()
        yield task


def by_windows(rig: Rig, target: Path, *options: str) -> Command:
    """A restore under which mappings wait for their part only."""
    command = rig.restore(target, *OPTIONS, "--limit", "1", *options)
    paused(rig, target)
    with rig.control(target) as client:
        wait_until(lambda: client.status().ranges.windows, "windows are in force")
    return command


def stopped(pid: int) -> bool:
    """Or that thread alone, where it was traced before the stop came."""
    stats = [thread.joinpath("stat").read_bytes() for thread in Path(f"/proc/{pid}/task").iterdir()]
    return any(stat.rpartition(b")")[2].split()[0] in (b"T", b"t") for stat in stats)


def threads(pid: int) -> list[dict[str, str]]:
    """What proc(5) says of them (status)."""
    texts = [(thread / "status").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    return [dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line) for text in texts]


def traced(pid: int) -> bool:
    return any(thread["TracerPid"] != "0" for thread in threads(pid))


def kept(pid: int) -> bool:
    """Traced, with a SIGSTOP pending."""
    return any(thread["TracerPid"] != "0" and int(thread["SigPnd"], 16) >> 18 & 1 for thread in threads(pid))


def test_what_is_mapped_may_grow(rig: Rig, target: Path) -> None:
    """By mremap(2): in its place, moved, doubled, by a thread, by a child; by remap_file_pages(2) to any place of the file."""
    contents = {how: make(rig.tree / "big" / how) for how in WAYS}
    # On btrfs by the old rule.
    is_btrfs = filesystem_magic(str(target.parent)) == BTRFS_MAGIC
    command = rig.restore(target, *OPTIONS, "--limit", "1") if is_btrfs else by_windows(rig, target)
    paused(rig, target)
    for how, content in contents.items():
        assert_shown(shown(how, target / "big" / how), content, how)
        assert marked(target / "big" / how)
    (job,) = rig.place.glob("state/*/restore.json")
    pins = bpffs.windows(json.loads(job.read_text())["restore_id"])
    assert pins.is_dir() != is_btrfs
    assert ("mappings by their part" in rig.run("status", target).stdout) != is_btrfs
    assert ("who makes a mapping show more" in rig.run("doctor", target).stdout) != is_btrfs
    rig.finish(command, target)
    rig.assert_clean(target)
    assert not pins.exists()


def test_a_window_does_not_wait_for_its_file(rig: Rig, ext4_target: Path) -> None:
    """Nor does a growing one for what it does not show."""
    content = make(rig.tree / "big" / "file", LARGE)
    command = by_windows(rig, ext4_target)
    path = ext4_target / "big" / "file"
    with rig.control(ext4_target) as client:
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), PAGE, offset=MIB) as view:
            assert view[:] == content[MIB:][:PAGE]
        there = client.status().ranges.bytes_present
        assert 0 < there < LARGE // 4
        # More than the first step of the background, which may have come before the pause.
        assert python(GROW, MAPS.parent, path, str(SIZE)).decode().strip() == summed(content[:SIZE])
        assert there < client.status().ranges.bytes_present < LARGE // 2
    assert marked(path)
    rig.finish(command, ext4_target)
    assert path.read_bytes() == content
    rig.assert_clean(ext4_target)


def test_without_programs_a_mapping_waits_for_all_that_it_may_show(rig: Rig, ext4_target: Path) -> None:
    """They cannot be pinned. From its beginning to the end of the file; for all of it where it is shared and written."""
    how = "written"
    contents = {name: make(rig.tree / "big" / name) for name in (how, "private", "elsewhere", "file")}
    rig.way_in = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro none /sys/fs/bpf && exec "$@"', "sh")
    command = rig.restore(ext4_target, *OPTIONS, "--limit", "1")
    paused(rig, ext4_target)
    start = SIZE - MIB
    words = (READERS["mmap"], ext4_target / "big" / "file", str(start), "1000")
    assert python(*words).decode().strip() == summed(contents["file"][start:][:1000])
    with rig.control(ext4_target) as client:
        # The background may have had its first step by then.
        assert MIB <= client.status().ranges.bytes_wanted < SIZE // 2
    for name in ("private", "elsewhere"):
        assert_shown(shown(name, ext4_target / "big" / name), contents[name], name)
    with rig.control(ext4_target) as client:
        before = client.status().ranges.bytes_present
        with window(how, ext4_target / "big" / how, contents[how]):
            # Of this file, too, the background may have brought a part before, and of another one meanwhile.
            assert client.status().ranges.bytes_present > before + SIZE // 2
    assert "mappings to the end of their file" in rig.run("status", ext4_target).stdout
    rig.finish(command, ext4_target)
    rig.assert_clean(ext4_target)


def test_who_grows_while_no_agent_lives_stops(rig: Rig, ext4_target: Path) -> None:
    """And goes on with the right bytes under the next one; who grew before its end, too."""
    ways = ("in place", "by a thread", "inherited", "written", "elsewhere")
    contents = {how: make(rig.tree / "big" / how) for how in ways}
    command = by_windows(rig, ext4_target)
    with contextlib.ExitStack() as stack:
        tasks = {how: stack.enter_context(window(how, ext4_target / "big" / how, contents[how])) for how in ways}
        command.kill()
        for task in tasks.values():
            task.say(b"\n")
        for how in ("in place", "by a thread", "written", "elsewhere"):
            wait_until(lambda task=tasks[how]: traced(task.pid), f"{how}: it is held")  # type: ignore[misc]
        held = [task.pid for how, task in tasks.items() if how != "inherited"]
        wait_until(lambda: all(map(kept, held)), "a stop waits for them")
        for pid in held:
            os.kill(pid, signal.SIGCONT)
        # Nobody else lets them go on; they stop by themselves where nobody traces them.
        wait_until(lambda: all(map(kept, held)), "a stop waits for them again")
        rig.kill("ar-keeper")
        wait_until(lambda: all(map(traced, held)), "the standby holds them")
        command = rig.resume(ext4_target)
        paused(rig, ext4_target)
        for how, task in tasks.items():
            content = bytearray(contents[how])
            if how == "written":
                content[START::PAGE] = b"\x57" * len(range(START, SIZE, PAGE))
            assert_shown([line.split() for line in task.output().decode().splitlines()], bytes(content), how)
    rig.finish(command, ext4_target)
    content = bytearray(contents["written"])
    content[START::PAGE] = b"\x57" * len(range(START, SIZE, PAGE))
    assert (ext4_target / "big" / "written").read_bytes() == content
    rig.assert_clean(ext4_target)


def test_who_grows_into_damage_ends(rig: Rig, ext4_target: Path) -> None:
    """There is no call any more that could fail."""
    content = make(rig.tree / "big" / "file")
    from_restic(rig)
    packs = sorted((rig.place / "repository" / "data").rglob("*/*"), key=lambda pack: pack.stat().st_size)
    command = by_windows(rig, ext4_target)
    with window("private", ext4_target / "big" / "file", content) as task:
        for pack in packs[-2:]:
            pack.write_bytes(bytes(pack.stat().st_size))
        task.say(b"\n")
        assert task.finish()[:2] == (-9, b"")
    rig.finish(command, ext4_target, expected=3)
    assert rig.run("release", ext4_target).returncode == 0
    rig.kill("ar-standby")
    rig.kill("ar-keeper")


def test_released_without_an_agent_it_ends(rig: Rig, ext4_target: Path) -> None:
    """Who is stopped, and who grows later."""
    contents = {how: make(rig.tree / "big" / how) for how in ("private", "shared")}
    command = by_windows(rig, ext4_target)
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(window(how, ext4_target / "big" / how, contents[how])) for how in contents)
        command.kill()
        first.say(b"\n")
        wait_until(lambda: stopped(first.pid), "it is stopped")
        assert rig.run("release", ext4_target).returncode == 0
        assert first.finish()[:2] == (-9, b"")
        second.say(b"\n")
        assert second.finish()[:2] == (-9, b"")
    rig.kill("ar-standby")
    rig.kill("ar-keeper")


def test_locked_copies_end(rig: Rig, ext4_target: Path) -> None:
    """Where memory is locked mremap(2) itself makes private copies of what is not there: nothing could put them right."""
    content = make(rig.tree / "big" / "file")
    command = by_windows(rig, ext4_target)
    with window("locked", ext4_target / "big" / "file", content) as task:
        task.say(b"\n")
        assert task.finish()[:2] == (-9, b"")
    rig.finish(command, ext4_target)
    rig.assert_clean(ext4_target)


def test_who_got_the_number_of_a_dead_thread_is_left_alone(rig: Rig, ext4_target: Path) -> None:
    """What it left in the map is no reason to kill or to continue anybody else."""
    make(rig.tree / "big" / "file")
    command = by_windows(rig, ext4_target)
    command.kill()
    (job,) = rig.place.glob("state/*/restore.json")
    grown = Map.pinned(bpffs.windows(json.loads(job.read_text())["restore_id"]) / "map_grown")
    with Task.python("print(flush=True)\nsys.stdin.readline()\nprint('alive')") as task:
        task.line()
        left = Grown(1, 2, 0, PAGE, 0, 0, 0, 1, 12345, task.pid, task.pid, b"gone")
        grown.put(task.pid.to_bytes(4, "little"), GROWN.pack(*left))
        grown.close()
        assert rig.run("release", ext4_target).returncode == 0
        task.say(b"\n")
        assert task.output() == b"alive\n"
    rig.kill("ar-standby")
    rig.kill("ar-keeper")


def test_nobody_is_stopped_on_another_file_system(rig: Rig, ext4_target: Path, tmp_path: Path) -> None:
    """A copy of the disk has files with the same numbers and generations. While no agent lives nobody would let them go."""
    make(rig.tree / "big" / "file")
    by_windows(rig, ext4_target).kill()
    device = run("findmnt", "-nro", "SOURCE", "-T", ext4_target).decode().strip()
    image = run("losetup", "-nO", "BACK-FILE", device).decode().strip()
    top = run("findmnt", "-nro", "TARGET", "-T", ext4_target).decode().strip()
    run("sync", "-f", top)
    run("cp", "--sparse=always", image, tmp_path / "image")
    mount = tmp_path / "copy"
    mount.mkdir()
    run("mount", "-o", "loop", tmp_path / "image", mount)
    try:
        there = mount / ext4_target.relative_to(top) / "big" / "file"
        assert marked(there)
        assert_shown(shown("private", there), there.read_bytes(), "private")
    finally:
        run("umount", mount)
    command = rig.resume(ext4_target)
    rig.finish(command, ext4_target)
    rig.verify(ext4_target)


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
            assert python(*words).decode().strip() == summed(content[5_000_000:5_010_000])
        finally:
            subprocess.run(["umount", mount], check=True)
        server.output()
    assert not marked(ext4_target / "big" / "file")
    # It was the only one: the restore ends by itself.
    code, errors = command.end()
    assert code == 0, errors
    rig.verify(ext4_target)
