"""What every measurement needs: a scratch directory on a disk, compiled probes, repositories, fresh target disks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.disk import forget_page_cache, fresh_disk, quiet
from bench.restoring import restoring

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from bench.restoring import Restoring

_SOURCES = Path(__file__).parent / "c"
_NICENESS = "10"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. Sizes in bytes, ``rounds`` of every pair."""

    rounds: int
    small_files: int
    big_files: int
    big_size: int
    placeholders: int
    middle_files: int
    reads: int
    blobs: int
    pgbench_scale: int
    fio_seconds: int
    range_bytes: int
    cold: bool


FULL = Scale(3, 50_000, 4, 512 << 20, 200_000, 400, 1_000, 1_000_000, 43, 30, 4100 << 20, cold=True)
QUICK = Scale(1, 300, 2, 4 << 20, 500, 20, 30, 20_000, 1, 4, 48 << 20, cold=False)


class Repository(NamedTuple):
    """A restic repository with one snapshot."""

    path: Path

    @property
    def source(self) -> str:
        """As ``active-restore`` takes it."""
        return f"restic:{self.path}"


class Rig:
    """The scratch directory and how to use it."""

    def __init__(self, scratch: Path, sockets: Path, scale: Scale) -> None:
        self.scratch = scratch
        self.sockets = sockets
        self.scale = scale
        self.env = {
            **os.environ,
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(scratch / "cache"),
            "ACTIVE_RESTORE_STATE": str(scratch / "state"),
            "ACTIVE_RESTORE_RUN": str(sockets / "run"),
            "ACTIVE_RESTORE_LOG": str(scratch / "log"),
        }
        self._disks = 0

    def say(self, text: str) -> None:
        """What is going on, for people who wait."""
        print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def disk(self, size_bytes: int = 16 << 30, inodes: int = 400_000) -> AbstractContextManager[Path]:
        """A fresh target."""
        self._disks += 1
        return fresh_disk(self.scratch, f"disk{self._disks}", size_bytes=size_bytes, inodes=inodes)

    def cold(self) -> None:
        """Empty page cache, where the measurement is of a machine that has just started."""
        if self.scale.cold:
            forget_page_cache()

    def program(self, name: str) -> str:
        """The probe ``c/NAME.c``, compiled."""
        path = self.scratch / name
        if not path.exists():
            quiet("gcc", "-O2", "-Wall", "-o", str(path), str(_SOURCES / f"{name}.c"))
        return str(path)

    def library(self, name: str) -> str:
        """The shared object ``c/NAME.c``, compiled."""
        path = self.scratch / f"{name}.so"
        if not path.exists():
            quiet("gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(path), str(_SOURCES / f"{name}.c"))
        return str(path)

    def backup(self, name: str, directory: Path) -> Repository:
        """A repository with a snapshot of ``directory``, taken from inside it so that its root is the snapshot's; made once."""
        repository = self.scratch / f"{name}.restic"
        if not repository.exists():
            self.say(f"restic backup of {name}")
            quiet("restic", "init", "--quiet", "--repo", str(repository), env=self.env)
            quiet("restic", "backup", "--quiet", "--repo", str(repository), ".", env=self.env, cwd=directory)
        return Repository(repository)

    def restic_restore(self, repository: Repository, target: Path) -> float:
        """Seconds of the peer's whole restore."""
        return self.timed("restic", "restore", "latest", "--repo", str(repository.path), "--target", str(target))

    def timed(self, *command: str) -> float:
        """Seconds that a program takes, as nice as the workers of a restore: other load on the machine meets all alike."""
        started = time.monotonic()
        quiet("nice", "-n", _NICENESS, *command, env=self.env)
        return time.monotonic() - started

    def timed_python(self, module: str, *arguments: str) -> float:
        """Seconds that a module of ours takes as a program."""
        return self.timed(sys.executable, "-P", "-m", module, *arguments)

    def restoring(
        self, repository: Repository, target: Path, *options: str, preload: str | None = None
    ) -> AbstractContextManager[Restoring]:
        """``active-restore restore`` with ``options``; it takes the machine as its peers do, unless they say ``--throttle``."""
        options = options if "--throttle" in options else (*options, "--throttle", "off")
        env = {**self.env, "LD_PRELOAD": preload} if preload else self.env
        return restoring(repository.source, str(target), *options, env=env)

    def output(self, *command: str, lines: Sequence[str] = ()) -> str:
        """What a program prints that is fed ``lines``."""
        text = "".join(f"{line}\n" for line in lines)
        ended = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=self.env)
        if ended.returncode:
            raise RuntimeError(f"{command[0]}: {ended.stderr.strip()[-400:]}")
        return ended.stdout
