"""Repositories made by the real restic, in the ways that people make them."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from tests.source import trees
from tests.store import servers
from tests.store.conftest import make_bucket

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PASSWORD = "correct horse"


class Repository(NamedTuple):
    """Where it is, in restic's spelling, and the environment that opens it."""

    place: str
    env: dict[str, str]

    @property
    def spec(self) -> str:
        """As our command line takes it."""
        return f"restic:{self.place}"

    def restic(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run restic on it; its output. A failure fails the test with restic's words."""
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GOMAXPROCS": "2"} | self.env
        command = ["restic", "--no-cache", "-q", "-r", self.place, *arguments]
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def restored(self, target: Path) -> Path:
        """What ``restic restore latest`` makes of it."""
        self.restic("restore", "latest", "--target", str(target))
        return target

    def copy(self, target: Path) -> Repository:
        """A copy that a test may damage (local repositories only)."""
        shutil.copytree(self.place, target)
        return self._replace(place=str(target))


def fresh(path: Path, version: int) -> Repository:
    """An empty repository in a folder. It is made once and then copied: restic measures the machine for each anew."""
    template = path.parent / f"template-v{version}"
    if not template.exists():
        Repository(str(template), {"RESTIC_PASSWORD": PASSWORD}).restic("init", "--repository-version", str(version))
    return Repository(str(template), {"RESTIC_PASSWORD": PASSWORD}).copy(path)


def local(path: Path, version: int, *options: str) -> Callable[[Path], Repository]:
    """A maker of a repository in a folder, of one format version, with options for ``restic backup``."""

    def make(tree: Path) -> Repository:
        repository = fresh(path, version)
        repository.restic("backup", ".", "--host", "somewhere", "--tag", "one", *options, cwd=tree)
        return repository

    return make


def pruned(path: Path, tree: Path) -> Repository:
    """Two snapshots of which one was forgotten, and the packs rewritten that held something of it."""
    repository = fresh(path, 2)
    first = path.parent / f"{path.name}-first"
    shutil.copytree(tree / "small", first / "small")
    (first / "only-here").write_bytes(os.urandom(2_000_000))
    (first / "text").write_bytes((tree / "text").read_bytes())
    repository.restic("backup", ".", cwd=first)
    repository.restic("backup", ".", cwd=tree)
    repository.restic("forget", "--keep-last", "1", "--group-by", "", "--prune", "--max-unused", "0")
    return repository


def several_keys(path: Path, tree: Path) -> Repository:
    """A repository with two keys, opened by the one that was added last; small packs."""
    repository = local(path, 2, "--pack-size", "4")(tree)
    other = path.parent / f"{path.name}-password"
    other.write_text("the second password\n")
    repository.restic("key", "add", "--new-password-file", str(other))
    return repository._replace(env={"RESTIC_PASSWORD_FILE": str(other)})


def on_s3(url: str, tree: Path) -> Repository:
    """A repository in a bucket below a prefix."""
    make_bucket(url, "restic")
    repository = Repository(f"s3:{url}/restic/some/where", servers.S3_ENV | {"RESTIC_PASSWORD": PASSWORD})
    repository.restic("init")
    repository.restic("backup", ".", cwd=tree)
    return repository


def on_rest(server: servers.RestServer, tree: Path) -> Repository:
    """A repository on a REST server that wants a password."""
    place = f"rest:http://{servers.USER}:{quote(servers.PASSWORD, safe='')}@{server.address}/a/repo/"
    repository = Repository(place, {"RESTIC_PASSWORD": PASSWORD})
    repository.restic("init")
    repository.restic("backup", ".", cwd=tree)
    return repository


class Repositories:
    """Makes each repository once, when it is first asked for: deriving keys takes restic its time."""

    def __init__(self, root: Path, s3: Callable[[], str], rest: Callable[[], servers.RestServer]) -> None:
        self.tree = trees.fill(root / "tree")
        self._root = root
        self._made: dict[str, Repository] = {}
        self._makers: dict[str, Callable[[Path], Repository]] = {
            "v1": local(root / "v1", 1),
            "v2": local(root / "v2", 2),
            "max": local(root / "max", 2, "--compression", "max"),
            "off": local(root / "off", 2, "--compression", "off"),
            "keys": lambda tree: several_keys(root / "keys", tree),
            "pruned": lambda tree: pruned(root / "pruned", tree),
            "s3": lambda tree: on_s3(s3(), tree),
            "rest": lambda tree: on_rest(rest(), tree),
        }

    def get(self, name: str) -> Repository:
        """The repository of that name."""
        if name not in self._made:
            self._made[name] = self._makers[name](self.tree)
        return self._made[name]


NAMES = ("v1", "v2", "max", "off", "keys", "pruned", "s3", "rest")
