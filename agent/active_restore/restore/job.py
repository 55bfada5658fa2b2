"""The record of one restore: what was asked, how far it came, and the lock that keeps a second agent away.

It lives in the state directory as ``restore.json`` and, from before anything is laid, as an xattr of the target's root, so
that a lost state directory can be rebuilt from the target alone. That one knows the phase, too, and durably so before anything
is visible: what was not laid completely must be laid again, and not be taken for all that there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import socket
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from active_restore.config import RestoreOptions, run_root, state_root
from active_restore.errors import ActiveRestoreError, Busy, NotRunning, TargetError
from active_restore.marker import EPOCH, MARKER, marker_prefix
from active_restore.placeholder import staging_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Done: only to be forgotten. The last two: the state is lost, and maybe not all is visible (lost), or all is (forgotten).
Stage: TypeAlias = Literal["planning", "laying", "revealing", "restoring", "refusing", "done", "lost", "forgotten"]
# See ``control.registry.directory_name``.
_OURS = re.compile("[0-9a-f]{16}")
_FILE = "restore.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """``options.snapshot`` is the full id once the snapshot is chosen. ``restore_id``: 16 hex digits."""

    name: str
    restore_id: str
    options: RestoreOptions
    phase: Stage = "planning"

    @property
    def state_dir(self) -> Path:
        """Durable state."""
        return state_root() / self.name

    @property
    def run_dir(self) -> Path:
        """Sockets."""
        return run_root() / self.name

    @property
    def stopped(self) -> Path:
        """There while a user wants this restore to stand still; forgotten by a reboot."""
        return stopped_file(self.name)

    @property
    def marker_prefix(self) -> bytes:
        """What the markers of this restore begin with."""
        return marker_prefix(self.restore_id)

    def save(self) -> None:
        """Write ``restore.json`` durably."""
        path = self.state_dir / _FILE
        fresh = path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(self._as_dict(), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        directory = os.open(self.state_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _as_dict(self) -> dict[str, Any]:
        return {"restore_id": self.restore_id, "phase": self.phase, **dataclasses.asdict(self.options)}

    def in_phase(self, phase: Stage) -> Job:
        """The same job further on; saved, on the target as well."""
        job = dataclasses.replace(self, phase=phase)
        job.save()
        job._mark_target()
        return job

    def with_source(self, source: str) -> Job:
        """The same job from another place."""
        return dataclasses.replace(self, options=dataclasses.replace(self.options, source=source))

    def with_snapshot(self, snapshot: str) -> Job:
        """The same job with the snapshot that was chosen; saved."""
        job = dataclasses.replace(self, options=dataclasses.replace(self.options, snapshot=snapshot))
        job.save()
        return job

    def _mark_target(self) -> None:
        """Leave the record on the target's root, durably."""
        try:
            root = os.open(self.options.target, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return  # its user has moved it away
        try:
            os.setxattr(root, MARKER, json.dumps(self._as_dict()).encode())
            os.fsync(root)
        except OSError as error:
            # Over a quota not even that may find room. An earlier phase on the target does no harm once all is visible.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or self.phase not in ("restoring", "refusing"):
                raise
        finally:
            os.close(root)

    def forget(self) -> None:
        """Remove every trace of the record."""
        if self.phase not in ("planning", "laying"):
            # Else who is interrupted here would leave a target that does not seem to be that of this restore.
            with contextlib.suppress(OSError):
                dataclasses.replace(self, phase="done").save()
        for name in (EPOCH, MARKER):
            with contextlib.suppress(OSError):
                os.removexattr(self.options.target, name)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        shutil.rmtree(self.state_dir, ignore_errors=True)


def stopped_file(name: str) -> Path:
    """See ``Job.stopped``."""
    return run_root() / name / "stopped"


def lock_file(name: str) -> Path:
    """What the agent of a target holds locked."""
    return state_root() / name / "agent.lock"


def _from_dict(name: str, read: Any) -> Job:
    found = msgspec.convert(read, dict[str, Any])
    known = {field.name for field in dataclasses.fields(RestoreOptions)}
    options = msgspec.convert({key: value for key, value in found.items() if key in known}, RestoreOptions)
    phase = msgspec.convert(found["phase"], Stage)
    return Job(name, bytes.fromhex(found["restore_id"]).hex(), options, phase)


def load(name: str) -> Job:
    """The job of a state directory. Raises ``NotRunning``."""
    path = state_root() / name / _FILE
    try:
        return _from_dict(name, json.loads(path.read_text()))
    except FileNotFoundError:
        raise NotRunning("no restore is known for this target", "begin one with: active-restore restore") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ActiveRestoreError(
            f"the state {path} is damaged ({error})", "move it away and run resume: state is rebuilt from the markers"
        ) from error


_AFTER_LOSS: dict[Stage, Stage] = {"planning": "laying", "laying": "laying", "revealing": "lost"}


def load_from_target(name: str, target: str) -> Job:
    """The job that a target's root remembers, to be laid again or with a catalog to be rebuilt. Raises ``NotRunning``."""
    job = _told_by(name, target)
    if job is None:
        raise NotRunning(f"no restore is known for {target}", "begin one with: active-restore restore SOURCE TARGET")
    return dataclasses.replace(job, phase=_AFTER_LOSS.get(job.phase, "forgotten"))


def _told_by(name: str, target: str) -> Job | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _from_dict(name, json.loads(os.getxattr(target, MARKER)))
    return None


_RANKS: dict[Stage, int] = {"planning": 0, "laying": 1, "revealing": 2, "restoring": 3, "refusing": 3, "done": 3}


def as_target_says(job: Job, target: str) -> Job:
    """The job of our state, in the phase in which the target is: either of them may have been put back to an older state.

    Raises ``TargetError`` where that is not the target of this restore (any more).
    """
    told = _told_by(job.name, target)
    if told is None and job.phase in ("planning", "laying", "done"):
        return job
    if told is None or told.restore_id != job.restore_id:
        raise TargetError(
            f"{target} is not what is being restored there: it is not mounted, or was put back to what it was before",
            f"mount it; or, to give that restore up, remove {job.state_dir}",
        )
    if job.phase in ("lost", "forgotten"):
        return load_from_target(job.name, target)
    ours, theirs = _RANKS[job.phase], _RANKS.get(told.phase, 0)
    if theirs > max(ours, 1):
        # To lay or reveal again would replace what users have written since: our state is worth nothing.
        return load_from_target(job.name, target)
    # An earlier phase may just have found no room to be replaced. What is laid twice was not visible before.
    if theirs == 1 or (theirs < ours and os.path.lexists(os.path.join(target, staging_name(job.restore_id)))):
        return dataclasses.replace(job, phase=told.phase)
    return job


@contextlib.contextmanager
def only_agent(name: str) -> Iterator[None]:
    """Hold the lock of a target. Raises ``Busy`` where another agent holds it."""
    sweep()
    fd = _locked(name)
    try:
        yield
    finally:
        _forget_unrecorded(name)
        os.close(fd)


def sweep() -> None:
    """Remove what agents that were killed while they forgot their restore have left of its state directory.

    Nothing whose name is not one of ours: users may keep other things there.
    """
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(state_root()):
            if _OURS.fullmatch(name) and not (state_root() / name / _FILE).exists():
                with contextlib.suppress(OSError, Busy):
                    fd = _locked(name)
                    _forget_unrecorded(name)
                    os.close(fd)


def _locked(name: str) -> int:
    while True:
        (state_root() / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            fd = os.open(lock_file(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # whoever held it has just removed the directory
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise Busy("another agent works on this target", "see: active-restore status") from error
        if os.fstat(fd).st_nlink:
            return fd
        # Removed between our open and our lock: the next one makes a file of its own, and nobody would meet us here.
        os.close(fd)


def _forget_unrecorded(name: str) -> None:
    """Nothing came of it, or it is over. Called with the lock held."""
    directory = state_root() / name
    if not (directory / _FILE).exists():
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def only_copy(restore_id: str) -> Iterator[None]:
    """Hold a restore whose state is not there: copies of its target (snapshots of LVM) are other targets with the same id.

    By an abstract address, which is gone with its holder. Raises ``Busy``.
    """
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            claim.bind(f"\0active-restore/{restore_id}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise Busy("another copy of this target is restored just now", "see: active-restore status") from error
        yield
