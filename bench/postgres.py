"""A PostgreSQL cluster with 1.4 GB of data: make one, start one that is being restored, ask it.

Half of the data is a table in 24 partitions (files of some 30 MB), the other half the same rows in one table, one file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.disk import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DIRECTORY = "pgdata"
FIRST = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711"
FIRST_OF_ONE_FILE = "SELECT abalance FROM whole WHERE aid = 4711"
SCAN = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) + (SELECT sum(abalance) FROM whole)"
_MAKE = "CREATE TABLE whole AS SELECT * FROM pgbench_accounts; ALTER TABLE whole ADD PRIMARY KEY (aid); VACUUM FREEZE ANALYZE"
_PARTITIONS = 24


def binaries() -> Path | None:
    """Where Debian puts the newest server; ``None`` where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    return found[-1].parent if found else None


def install() -> None:
    """The Debian package, unless it is there. Its own cluster is neither needed nor made."""
    if binaries() is None:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        quiet("apt-get", "update", "--quiet", env=env)
        quiet("apt-get", "install", "--quiet", "--yes", "--no-install-recommends", "postgresql", env=env)


class Cluster:
    """A data directory below ``root``; ``socket`` is where its server listens. Programs run as the user ``postgres``."""

    def __init__(self, root: Path, socket: Path) -> None:
        found = binaries()
        if found is None:
            raise RuntimeError("PostgreSQL is not installed")
        self._bin = found
        self._data = root / DIRECTORY
        self._socket = socket
        socket.mkdir(exist_ok=True)
        shutil.chown(socket, "postgres")

    def make_empty(self) -> None:
        """A new one."""
        self._data.mkdir(parents=True)
        shutil.chown(self._data, "postgres")
        self._run("initdb", "--no-sync", "--auth=trust", "--locale=C.UTF-8", "-D", str(self._data))

    def make(self, scale: int) -> None:
        """Fill a new one; ``scale`` is pgbench's: 100,000 accounts each."""
        self.make_empty()
        with self.running("-c fsync=off -c wal_level=minimal -c max_wal_size=128MB -c min_wal_size=32MB"):
            arguments = ("--initialize", "--quiet", f"--scale={scale}", f"--partitions={_PARTITIONS}", "--no-vacuum")
            self._run("pgbench", *arguments, "-h", str(self._socket), "postgres")
            for statement in _MAKE.split(";"):
                self.ask(statement)
            self.ask("CHECKPOINT")

    @contextlib.contextmanager
    def running(self, options: str = "") -> Iterator[None]:
        """The server, started; stopped when the context ends."""
        where = f"-k {self._socket} -c listen_addresses= -c max_wal_senders=0 {options}"
        log = self._socket / "log"
        self._run("pg_ctl", "start", "--wait", "-t", "120", "-D", str(self._data), "-l", str(log), "-o", where)
        try:
            yield
        finally:
            self._run("pg_ctl", "stop", "--wait", "-m", "fast", "-D", str(self._data))

    def ask(self, query: str) -> str:
        """The answer of one statement."""
        return self._run("psql", "-qAtX", "-h", str(self._socket), "-d", "postgres", "-c", query).strip()

    def _run(self, program: str, *arguments: str) -> str:
        # pg_ctl's server inherits its streams: what is no pipe can stay open with it.
        command: Sequence[str] = ("runuser", "-u", "postgres", "--", str(self._bin / program), *arguments)
        if program != "pg_ctl":
            return quiet(*command, cwd=Path("/"))
        subprocess.run(command, cwd="/", check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return ""
