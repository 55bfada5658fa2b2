"""PostgreSQL on a cluster that is half restored: it starts on placeholders, checks itself, and runs its regression tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.machine import ROOT
from tests.kernel.disks import mounted
from tests.kernel.rig import add_decoys
from tests.kernel.waiting import DEADLINE_S
from tests.torture.test_strangers import quietly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.rig import Rig

_POSTGRES = Path("/usr/lib/postgresql")
_SUITE = ROOT / "build" / "postgres-suite"
_AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
_SESSIONS = 8
# Of some thirty, each of up to twenty tests; later ones build upon what earlier ones leave.
_GROUPS = int(os.environ.get("STRANGERS_GROUPS", "8"))
_TOLD_CHARS = 5000


class Clusters:
    """A cluster in the source, and what becomes of it in the target."""

    def __init__(self, rig: Rig, place: Path, target: Path) -> None:
        self.place = place
        self._sockets = place / "sockets"
        self.data, self.restored, self.target = rig.tree / "pg", target / "pg", target
        self._lib = max(_POSTGRES.iterdir(), key=lambda path: int(path.name)) / "lib"
        self.programs = self._lib.parent / "bin"
        for folder in (self.data, self._sockets):
            folder.mkdir()
            shutil.chown(folder, "postgres", "postgres")

    def run(self, program: str, *arguments: str | Path) -> str:
        """One of its programs, as its user; those of clients find the server that runs."""
        env = {**os.environ, "PGHOST": str(self._sockets), "PGUSER": "postgres"}
        return quietly(*_AS_POSTGRES, self.programs / program, *arguments, cwd=Path("/"), env=env)

    @contextlib.contextmanager
    def running(self, data: Path) -> Iterator[None]:
        """A server on this directory."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._sockets} -c fsync=off"
        control = ("pg_ctl", "-D", data, "-w", "-t", str(int(DEADLINE_S)), "-l", self._sockets / "log", "-o", options)
        self.run(*control, "start")
        try:
            yield
        finally:
            self.run(*control, "stop", "-m", "fast")

    def regress(self) -> str:
        """Its regression tests on the server that runs; what they said."""
        suite, results = self.place / "suite", self.place / "results"
        subprocess.run([ROOT / "tests/torture/postgres_suite", _SUITE], check=True, capture_output=True)
        shutil.copytree(_SUITE, suite)
        results.mkdir()
        shutil.chown(results, "postgres", "postgres")
        program = self._lib / "pgxs/src/test/regress/pg_regress"
        words = (f"--inputdir={suite}", f"--dlpath={suite}", f"--outputdir={results}", f"--bindir={self.programs}")
        tests = [line for line in (suite / "parallel_schedule").read_text().splitlines() if line.startswith("test:")]
        (suite / "schedule").write_text("\n".join(tests[:_GROUPS]))
        how = (f"--schedule={suite}/schedule", f"--max-connections={_SESSIONS}", "--no-locale")
        try:
            return self.run(str(program), *words, *how)
        except AssertionError as error:
            error.add_note((results / "regression.diffs").read_text()[:_TOLD_CHARS])
            raise


@pytest.fixture
def clusters(rig: Rig) -> Iterator[Clusters]:
    """A new cluster, on ext4. Not below the directory of the tests, which is root's alone."""
    with tempfile.TemporaryDirectory(prefix="active-restore-test-") as name:
        place = Path(name)
        place.chmod(0o755)
        rig.tree = place / "source"
        rig.source = f"dir:{rig.tree}"
        rig.tree.mkdir()
        add_decoys(rig.tree)
        with mounted("ext4", place / "disk") as disk, contextlib.ExitStack() as stack:
            # A test that fails leaves an agent, which would hold the disk.
            stack.callback(rig.end)
            clusters = Clusters(rig, place, disk.mount / "t")
            clusters.run("initdb", "-D", clusters.data, "-A", "trust", "--no-sync", "--no-locale", "--encoding=UTF8")
            yield clusters


def test_amcheck(rig: Rig, clusters: Clusters) -> None:
    """A cluster that was backed up stopped starts on placeholders; every heap and index is checked."""
    with clusters.running(clusters.data):
        clusters.run("pgbench", "-i", "-s", "2", "-q")
    command = rig.hold(clusters.target)
    with clusters.running(clusters.restored):
        assert clusters.run("psql", "-Atc", "SELECT count(*) FROM pgbench_accounts").strip() == "200000"
        clusters.run("pg_amcheck", "--install-missing", "--heapallindexed", "--all")
        clusters.run("pgbench", "-n", "-t", "200", "-c", "2")
        rig.finish(command, clusters.target)
        clusters.run("pg_amcheck", "--heapallindexed", "--all")


def test_regression_tests(rig: Rig, clusters: Clusters) -> None:
    """Its own, on a server whose every file was a placeholder, and then the checker on what they left."""
    command = rig.hold(clusters.target)
    with clusters.running(clusters.restored):
        said = clusters.regress()
        assert "tests passed" in said, said[-500:]
        clusters.run("pg_amcheck", "--install-missing", "--heapallindexed", "--all")
        rig.finish(command, clusters.target)
        clusters.run("pg_amcheck", "--heapallindexed", "--all")
