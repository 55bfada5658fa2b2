"""Repositories whose index or trees are damaged, patterns and subfolders: the whole command on a real kernel."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

import pytest

from tests.kernel.tasks import read
from tests.source.forge import Forge, node

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

FILES = {
    "a/one.txt": b"1" * 3000,
    "a/two.log": b"2" * 9000,
    "a/deep/three.txt": b"3" * 70_000,
    "b/four.txt": b"4" * 100,
    "b/five.log": b"5" * 20_000,
}


class Parts:
    """A repository in which each tree has a pack of its own."""

    def __init__(self, rig: Rig) -> None:
        forge = self.forge = Forge(rig.place / "repo")
        forge.key("secret")
        self.packs: dict[str, str] = {}
        blobs = {path: forge.blob(content) for path, content in FILES.items()}
        self.packs["content"] = forge.flush()

        def folder(name: str, *nodes: dict[str, object]) -> str:
            tree = forge.tree(*nodes)
            self.packs[name] = forge.flush()
            return tree

        def files(name: str) -> list[dict[str, object]]:
            inside = {path.removeprefix(name + "/"): path for path in FILES if path.rpartition("/")[0] == name}
            return [node(leaf, size=len(FILES[path]), content=[blobs[path]]) for leaf, path in inside.items()]

        deep = folder("a/deep", *files("a/deep"))
        a = folder("a", node("deep", "dir", subtree=deep, mode=0o755), *files("a"))
        b = folder("b", *files("b"))
        root = folder("", node("a", "dir", subtree=a, mode=0o755), node("b", "dir", subtree=b, mode=0o755))
        forge.snapshot(root)
        rig.source = f"restic:{rig.place / 'repo'}"
        rig.env["RESTIC_PASSWORD"] = "secret"

    def spoil_pack(self, name: str) -> None:
        pack = self.forge.root / "data" / self.packs[name][:2] / self.packs[name]
        pack.write_bytes(bytes(byte ^ 0x55 for byte in pack.read_bytes()))

    def spoil_indexes(self) -> None:
        for index in (self.forge.root / "index").iterdir():
            index.write_bytes(index.read_bytes()[:-7] + b"damaged")


@pytest.fixture
def parts(rig: Rig) -> Parts:
    return Parts(rig)


def restored(target: Path) -> dict[str, bytes]:
    paths = [path for path in target.rglob("*") if path.is_file()]
    return {str(path.relative_to(target)): read(path) for path in paths}


def test_damaged_index(rig: Rig, parts: Parts, ext4_target: Path) -> None:
    """Pack headers tell what the index does not: nothing is lost."""
    parts.spoil_indexes()
    done = rig.run("restore", rig.source, ext4_target, "--json")
    assert done.returncode == 0, done.stderr
    assert restored(ext4_target) == FILES
    rig.verify(ext4_target)


@pytest.mark.parametrize(("name", "lost"), [("a/deep", ["a/deep/three.txt"]), ("b", ["b/four.txt", "b/five.log"])], ids=str)
def test_damaged_tree(rig: Rig, parts: Parts, ext4_target: Path, name: str, lost: list[str]) -> None:
    """That folder is listed and the exit code is 3; everything else is there."""
    parts.spoil_pack(name)
    done = rig.run("restore", rig.source, ext4_target, "--json")
    assert (done.returncode, done.stderr) == (3, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    refused = [(event["path"], event["errno"]) for event in events if event["event"] == "refused"]
    assert refused == [(name, errno.EIO)]
    assert events[-1]["refused"] == 1
    assert restored(ext4_target) == {path: content for path, content in FILES.items() if path not in lost}
    rig.assert_clean(ext4_target)


def test_damaged_root(rig: Rig, parts: Parts, ext4_target: Path) -> None:
    parts.spoil_pack("")
    done = rig.run("restore", rig.source, ext4_target)
    assert done.returncode == 14
    assert len(done.stderr.splitlines()) == 2
    assert not list(ext4_target.iterdir())
    rig.assert_clean(ext4_target)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--include", "*.txt"], {"a/one.txt", "a/deep/three.txt", "b/four.txt"}),
        (["--exclude", "*.txt", "--exclude", "/b"], {"a/two.log"}),
        (["--include", "/a", "--exclude", "deep"], {"a/one.txt", "a/two.log"}),
        (["--snapshot", "latest:/a"], {"one.txt", "two.log", "deep/three.txt"}),
        (["--snapshot", "latest:a/deep"], {"three.txt"}),
        (["--snapshot", "latest:/a", "--include", "*.txt"], {"one.txt", "deep/three.txt"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("parts")
def test_patterns_and_subfolders(rig: Rig, ext4_target: Path, arguments: list[str], expected: set[str]) -> None:
    done = rig.run("restore", rig.source, ext4_target, *arguments)
    assert done.returncode == 0, done.stderr
    found = restored(ext4_target)
    assert set(found) == expected
    prefix = arguments[1].partition(":")[2].strip("/") if arguments[0] == "--snapshot" else ""
    assert found == {name: FILES[f"{prefix}/{name}".strip("/")] for name in expected}
    rig.verify(ext4_target, *arguments)
