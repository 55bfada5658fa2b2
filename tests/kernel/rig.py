"""Everything around a restore under test: its directories, the command as processes of its own, and what may be left."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from active_restore.control.client import ControlClient
from active_restore.control.registry import Known, directory_name
from active_restore.ebpf import program
from active_restore.ebpf.spared import spared
from active_restore.linux import bpffs
from active_restore.marker import EPOCH, MARKER
from active_restore.placeholder import STAGING_PREFIX
from tests.cli.machine import ROOT, Command
from tests.kernel.waiting import DEADLINE_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
INTERCEPTORS = os.environ.get("ACTIVE_RESTORE_TEST_INTERCEPTORS", "fanotify").split(",")
"""Those that are tested; restores use the first."""
_DECOYS = 4
_DECOY_BYTES = 16 * MIB


def add_decoys(tree: Path) -> None:
    """What the background does first: each fills a batch alone and exhausts a limit of 1 byte a second for ever.

    A restore that begins with ``--limit 1`` fills nothing else by itself. Call it before other files are made: a directory
    is restored in the order of inode numbers (and ``Rig.start`` looks after that).
    """
    for number in range(_DECOYS):
        with open(tree / f"decoy{number}", "wb") as file:
            file.write(b"d" * 65536)
            file.truncate(_DECOY_BYTES)


def keep_decoys_first(tree: Path) -> None:
    """Give files new inode numbers that got lower ones than the decoys: others delete files on the same disk meanwhile."""
    last = max((path.stat().st_ino for path in tree.glob("decoy?")), default=0)
    files: dict[int, list[Path]] = {}
    for folder, _, names in os.walk(tree):
        for path in (Path(folder) / name for name in names if not name.startswith("decoy")):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_ino < last:
                files.setdefault(found.st_ino, []).append(path)
    rejected: list[Path] = []
    for first, *links in files.values():
        while True:
            fresh = first.with_name(f"{first.name}.fresh{len(rejected)}")
            subprocess.run(["cp", "-a", "--sparse=always", first, fresh], check=True)
            if fresh.stat().st_ino > last:
                break
            rejected.append(fresh)
        fresh.rename(first)
        for link in links:
            link.unlink()
            link.hardlink_to(first)
    for path in rejected:
        path.unlink()


class Rig:
    """State and run directories of one test. Everything that was started is found by them and ended."""

    def __init__(self, place: Path, tree: Path) -> None:
        self.place = place
        self.tree = tree
        """Where the source of this test may be made."""
        self.source = f"dir:{tree}"
        """The source, as the command line takes it."""
        self.way_in: tuple[str, ...] = ()
        """What comes before the command line of ``start``: a program that runs the rest."""
        self._commands: list[Command] = []
        self.env = {
            **os.environ,
            "ACTIVE_RESTORE_CONFIG": str(place / "agent.toml"),
            "ACTIVE_RESTORE_STATE": str(place / "state"),
            "ACTIVE_RESTORE_RUN": str(place / "run"),
            "PYTHONPATH": str(ROOT / "agent"),
        }

    @staticmethod
    def argv(*arguments: str | Path) -> list[str]:
        """The command line of the command. Its background does not yield to other tests on this machine unless asked to."""
        if arguments[0] == "restore" and "--throttle" not in arguments:
            arguments = (*arguments, "--throttle", "off")
        return [sys.executable, "-c", "from active_restore.cli.main import run; run()", *map(str, arguments)]

    def start(self, *arguments: str | Path) -> Command:
        """A command that goes on while the test does; it prints JSON."""
        if arguments[0] == "restore" and self.source == f"dir:{self.tree}":
            keep_decoys_first(self.tree)
        command = Command.started([*self.way_in, *self.argv(*arguments), "--json"], self.env)
        self._commands.append(command)
        return command

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A command from its beginning to its end."""
        argv = self.argv(*arguments)
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False, timeout=2 * DEADLINE_S)

    def restore(self, target: Path, *arguments: str | Path) -> Command:
        """Begin a restore of the tree and wait until it is ready."""
        command = self.start("restore", self.source, target, "--interceptor", INTERCEPTORS[0], *arguments)
        command.until("ready")
        return command

    def hold(self, target: Path, *arguments: str | Path) -> Command:
        """A restore whose background does nothing (see ``add_decoys``): every other file is a placeholder."""
        return self.restore(target, "--limit", "1", *arguments)

    def resume(self, target: Path) -> Command:
        """Resume, and wait until faults are served."""
        command = self.start("resume", target)
        command.until("ready")
        return command

    @contextlib.contextmanager
    def control(self, target: Path) -> Iterator[ControlClient]:
        """Talk to the running restore of this target."""
        with mock.patch.dict(os.environ, self.env):
            with ControlClient(Known(directory_name(str(target)), "", "", str(target), "", "")) as client:
                yield client

    def hurry(self, target: Path) -> None:
        """Let the background go on without limit."""
        with self.control(target) as client:
            client.limit(0)
            client.proceed()

    def finish(self, command: Command, target: Path, expected: int = 0) -> None:
        """Let it run to its end."""
        self.hurry(target)
        code, errors = command.end()
        assert code == expected, errors

    def verify(self, target: Path, *arguments: str) -> None:
        """Nothing differs from the source and nothing of ours is left."""
        done = self.run("verify", self.source, target, "--extra", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        self.assert_clean(target)

    def assert_clean(self, target: Path) -> None:
        """No marker, staging directory or state; no process."""
        assert traces(target) == []
        for root in ("state", "run"):
            assert not list((self.place / root).glob("*")), root
        wait_until(lambda: not self.processes(), "every process has ended")

    def processes(self, name: str = "") -> list[int]:
        """Living processes of this rig: agents, workers, keepers; ``name`` is part of their command line or thread name."""
        return [pid for pid, comm in self.names() if name in comm or name in _command_line(pid)]

    def names(self) -> list[tuple[int, str]]:
        """Living processes of this rig and what their first thread is called, each looked at once: keepers change theirs."""
        mark = f"ACTIVE_RESTORE_RUN={self.place}/run".encode()
        found = ((pid, _name(pid, mark)) for pid in map(int, filter(str.isdigit, os.listdir("/proc"))))
        return [(pid, comm) for pid, comm in found if comm]

    def is_guarded(self) -> bool:
        """Whether keeper and standby are there, and both to stay: a copy of the agent that is one of them goes soon."""
        found = {comm: pid for pid, comm in self.names() if comm in ("ar-keeper", "ar-standby")}
        return len(found) == 2 and all("intercept.keeper" in _command_line(pid) for pid in found.values())

    def kill(self, name: str) -> None:
        """SIGKILL to all of a kind (``ar-keeper``, ``ar-standby``, ``restore.worker``); returns when they are gone.

        Gone is the last thread: one that is dying may still read an event, which is then refused (see the keeper).
        """
        with contextlib.ExitStack() as stack:
            victims = {pid: os.pidfd_open(pid) for pid in self.processes(name)}
            for pidfd in victims.values():
                stack.callback(os.close, pidfd)
            assert victims, f"no {name} is there"
            for pidfd in victims.values():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            for pid, pidfd in victims.items():
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                assert poll.poll(DEADLINE_S * 1000), f"{name} {pid} does not end"

    def end(self) -> list[str]:
        """End whatever is left; what that was."""
        for command in self._commands:
            command.kill()
        left = [_command_line(pid) for pid in self.processes()]
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes(), "what was killed is gone")
        for job in self.place.glob("state/*/restore.json"):
            # Pins outlive every process, and would hold tasks of the next test on the same disk.
            with spared():
                restore_id = json.loads(job.read_text())["restore_id"]
            program.unpin(bpffs.pins(restore_id))
            program.unpin(bpffs.windows(restore_id))
        return left


def traces(target: Path) -> list[str]:
    """Markers and staging directories at and below ``target``. Nothing is opened but directories."""
    found = []
    places = [os.fsencode(target)]
    for folder, folders, files in os.walk(os.fsencode(target)):
        places.extend(os.path.join(folder, name) for name in folders + files)
    for place in places:
        if os.path.basename(place).startswith(STAGING_PREFIX.encode()) or marked(place, MARKER, EPOCH):
            found.append(os.fsdecode(place))
    return found


def marked(path: Path | bytes, *names: str) -> bool:
    """Whether our marker is on it (or one of these attributes)."""
    with contextlib.suppress(OSError):
        return not {*(names or (MARKER,))}.isdisjoint(os.listxattr(path, follow_symlinks=False))
    return False


def _name(pid: int, mark: bytes) -> str:
    """Empty where it is none of ours, or gone."""
    with contextlib.suppress(OSError):
        place = Path(f"/proc/{pid}")
        if mark in (place / "environ").read_bytes():
            return (place / "comm").read_text().strip()
    return ""


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
