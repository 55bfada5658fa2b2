"""Bad input: one line, a hint, its own exit code, no traceback, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.test_end_to_end import fill
from tests.kernel.disks import mounted
from tests.kernel.rig import MIB, traces
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.disks import Disk
    from tests.kernel.rig import Rig


@pytest.fixture
def full(rig: Rig) -> Rig:
    """A rig with something to restore."""
    fill(rig.tree)
    return rig


def assert_refused(rig: Rig, code: int, words: str, *arguments: str | Path) -> None:
    ended = rig.run(*arguments)
    lines = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (code, ""), ended
    assert lines[0].startswith("active-restore: error: ")
    assert words in lines[0], ended.stderr
    assert [line.partition(": ")[0] for line in lines[1:]] == ["hint"], ended.stderr
    for place in ("state", "run"):
        assert not list((rig.place / place).glob("*")), f"{place} is left of what never began"


def test_target_not_empty(full: Rig, ext4_target: Path) -> None:
    ext4_target.mkdir()
    (ext4_target / "mine").write_text("mine")
    assert_refused(full, 16, "empty", "restore", full.source, ext4_target)
    assert os.listdir(ext4_target) == ["mine"]


def test_target_is_a_file(full: Rig, ext4_target: Path) -> None:
    ext4_target.touch()
    assert_refused(full, 16, "File exists", "restore", full.source, ext4_target)


def test_target_read_only(full: Rig) -> None:
    with mounted("ext4", full.place / "disk", 64 * MIB) as disk:
        (disk.mount / "tree").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", disk.mount], check=True)
        assert_refused(full, 16, "read-only", "restore", full.source, disk.mount / "tree")
        assert_refused(full, 16, "ead-only", "restore", full.source, disk.mount / "new")


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_file_system(full: Rig, ext4: Disk, kind: str) -> None:
    mount = full.place / "odd"
    mount.mkdir()
    layers = [ext4.mount / name for name in ("lower", "upper", "work")]
    for layer in layers:
        layer.mkdir(exist_ok=True)
    options = {"tmpfs": [], "overlay": ["-o", "lowerdir={},upperdir={},workdir={}".format(*layers)]}[kind]
    subprocess.run(["mount", "-t", kind, *options, kind, mount], check=True)
    try:
        assert_refused(full, 16, kind, "restore", full.source, mount / "tree")
    finally:
        subprocess.run(["umount", mount], check=True)


def test_too_little_space(full: Rig) -> None:
    (full.tree / "huge").write_bytes(os.urandom(70 * MIB))
    with mounted("ext4", full.place / "disk", 64 * MIB) as disk:
        assert_refused(full, 17, "", "restore", full.source, disk.mount / "tree")
        assert traces(disk.mount) == []


def test_no_privilege(full: Rig, ext4_target: Path) -> None:
    argv = full.argv("restore", full.source, ext4_target)
    argv[2] = argv[2].replace("run()", "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); run()")
    ended = subprocess.run(argv, env=full.env, capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout) == (18, "")
    error, hint = ended.stderr.splitlines()
    assert error.startswith("active-restore: error: ")
    assert hint.startswith("hint: ")


def test_no_source(full: Rig, ext4_target: Path) -> None:
    assert_refused(full, 10, "no directory", "restore", f"dir:{full.place}/nothing", ext4_target)


def test_bpf_is_not_there(full: Rig, ext4_target: Path) -> None:
    assert_refused(full, 18, "BPF", "restore", full.source, ext4_target, "--interceptor", "bpf")


@pytest.fixture
def repository(full: Rig) -> str:
    full.env["RESTIC_PASSWORD"] = "open sesame"
    place = str(full.place / "repository")
    for arguments in (["init"], ["backup", full.tree]):
        argv = ["restic", "-r", place, *arguments]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=full.env)
    return place


def test_restore(full: Rig, ext4_target: Path, repository: str) -> None:
    ended = full.run("restore", f"restic:{repository}", ext4_target, "--snapshot", f"latest:{full.tree}")
    assert (ended.returncode, ended.stderr) == (0, "")
    full.verify(ext4_target)
    assert full.run("verify", f"restic:{repository}", ext4_target, "--snapshot", f"latest:{full.tree}").returncode == 0


def test_bad_names(full: Rig, ext4_target: Path, repository: str) -> None:
    spec = f"restic:{repository}"
    assert_refused(full, 13, "0000", "restore", spec, ext4_target, "--snapshot", "0000000")
    assert_refused(full, 13, "nowhere", "restore", spec, ext4_target, "--snapshot", "latest:/nowhere")
    assert_refused(full, 10, "nothing", "restore", f"restic:{full.place}/nothing", ext4_target)
    full.env["RESTIC_PASSWORD"] = "guess"
    assert_refused(full, 12, "password", "restore", spec, ext4_target)
    del full.env["RESTIC_PASSWORD"]
    assert_refused(full, 12, "password", "restore", spec, ext4_target)
    assert not ext4_target.exists() or not os.listdir(ext4_target)


def truncate(path: str) -> None:
    os.truncate(path, 1000)


def flip_a_bit(path: str) -> None:
    with open(path, "r+b") as pack:
        pack.seek(5000)
        byte = pack.read(1)
        pack.seek(5000)
        pack.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.unlink])
def test_a_damaged_pack(full: Rig, ext4_target: Path, repository: str, damage: Callable[[str], None]) -> None:
    packs = [os.path.join(place, name) for place, _, names in os.walk(f"{repository}/data") for name in names]
    largest = max(packs, key=os.path.getsize)
    os.chmod(largest, 0o600)
    intact = Path(largest).read_bytes()
    damage(largest)
    ended = full.run("restore", f"restic:{repository}", ext4_target, "--snapshot", f"latest:{full.tree}", "--json")
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    refused = [event for event in events if event["event"] == "refused"]
    lost = {event["path"] for event in refused}
    assert (ended.returncode, ended.stderr) == (3, "")
    assert {event["errno_name"] for event in refused} == {"EIO"}
    assert (events[-1]["event"], events[-1]["refused"]) == ("done", len(lost))
    for path in full.tree.rglob("file*"):
        name = str(path.relative_to(full.tree))
        if name in lost:
            with pytest.raises(OSError, match="Input/output error"):
                (ext4_target / name).read_bytes()
        else:
            assert (ext4_target / name).read_bytes() == path.read_bytes()
    Path(largest).write_bytes(intact)
    resumed = full.run("resume", ext4_target)
    assert (resumed.returncode, resumed.stderr) == (0, ""), "what was refused can be restored from a repaired repository"
    full.verify(ext4_target)


def test_a_source_that_goes_away_and_comes_back(held_rig: Rig, ext4_target: Path) -> None:
    fill(held_rig.tree)
    agent = held_rig.hold(ext4_target)
    gone = held_rig.tree.with_name("gone")
    held_rig.tree.rename(gone)
    with subprocess.Popen(["cat", ext4_target / "b/file08"], stdout=subprocess.PIPE) as reader:
        with held_rig.control(ext4_target) as control:
            wait_until(lambda: control.status().source_unreachable_s > 0, "the agent has noticed")
            assert [wait.path for wait in control.status().waiting] == [b"b/file08"]
        assert "the source cannot be reached" in held_rig.run("status").stdout
        gone.rename(held_rig.tree)
        assert reader.communicate(timeout=60)[0] == (held_rig.tree / "b/file08").read_bytes()
    held_rig.finish(agent, ext4_target)
    held_rig.verify(ext4_target)
