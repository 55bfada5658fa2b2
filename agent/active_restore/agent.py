"""The composition root: one restore from its options to its end. Owns the task group, the threads and every lifetime."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Protocol

from active_restore.config import state_root
from active_restore.control.registry import directory_name, lookup, names
from active_restore.ebpf.spared import spared
from active_restore.errors import ActiveRestoreError, Interrupted, NotRunning, TargetError
from active_restore.intercept.choose import abandon
from active_restore.linux.bpffs import pins
from active_restore.linux.notify import notify
from active_restore.linux.process import allow_many_files
from active_restore.marker import MARKER
from active_restore.restore import epoch
from active_restore.restore import target as targets
from active_restore.restore.job import Job, as_target_says, load, load_from_target, only_agent, only_copy
from active_restore.restore.layer_process import LayerProcess
from active_restore.restore.progress import Done, Progress
from active_restore.restore.rebuild import is_copied
from active_restore.restore.steering import forget_pause
from active_restore.settings.file import settings_path
from active_restore.source.open import local_paths, open_source
from active_restore.store.addresses import AddressBook
from active_restore.store.turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from active_restore.config import RestoreOptions
    from active_restore.control.server import Commands, ControlServer
    from active_restore.restore.progress import Reporter
    from active_restore.run import Run
    from active_restore.source.base import Source

_TICK_SECONDS = 1.0
_SWITCH_SECONDS = 0.0001
_FILES_OF_RESTIC = ("RESTIC_PASSWORD_FILE", "RESTIC_CACERT")
_FILES_OF_THE_RESOLVER = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")


class Link(Protocol):
    """What wants to know which restore it is that a reporter hears of, and how to steer it."""

    def begin(self, restore_id: str, source: str, commands: Commands) -> None:
        """Called once, before the work begins; must not wait."""


def restore(options: RestoreOptions, reporter: Reporter, env: Mapping[str, str], link: Link | None = None) -> Done:
    """Begin a restore and see it through. Raises ``ActiveRestoreError``; ``Interrupted`` leaves it resumable."""
    started = time.monotonic()
    targets.need_root()
    targets.prepare(options.target)
    name = directory_name(options.target)
    with only_agent(name):
        _refuse_second(name, options.target)
        if options.existing == "refuse":
            targets.check_empty(options.target)
        job = Job(name, secrets.token_hex(8), options)
        return _see_through(job, reporter, env, started, link)


def resume(
    target: str,
    reporter: Reporter,
    env: Mapping[str, str],
    link: Link | None = None,
    *,
    source: str | None = None,
    wait_for_source: bool = False,
    stay_paused: bool = False,
) -> Done:
    """Go on with what was interrupted. ``source`` replaces the remembered one (the backup has moved).

    With ``wait_for_source`` the guard stands before the source is opened, and a source that is away is waited for. With
    ``stay_paused`` a background that a user had paused goes on when it is told to.
    """
    started = time.monotonic()
    targets.need_root()
    real = os.path.realpath(target)
    name = directory_name(real)
    with contextlib.ExitStack() as stack:
        with spared():
            stack.enter_context(only_agent(name))
            job = _find_job(name, real, stack)
        # Until we are its agent. Not by other guards: the source may lie in a tree that is half restored.
        stack.enter_context(spared(job.restore_id))
        if source:
            job = job.with_source(source)
        if not stay_paused:
            forget_pause(job.state_dir)
        return _see_through(job, reporter, env, started, link, wait_for_source=wait_for_source)


def need_own_files(target: str, env: Mapping[str, str]) -> None:
    """Raises ``TargetError`` where what a new agent reads is a placeholder of the restore that it is to go on with.

    The guard that is left would hold it for ever: nobody else can restore that file. Without one, after a reboot, a new guard
    comes first, whatever is in such a file. Nothing is opened here.
    """
    real = os.path.realpath(target)
    try:
        with spared():
            job = load(directory_name(real))
    except ActiveRestoreError:
        return
    if not job.run_dir.exists():
        return
    paths = [str(settings_path())]
    if job.options.source.startswith("restic:"):
        paths += [env[name] for name in _FILES_OF_RESTIC if env.get(name)]
        paths += () if local_paths(job.options.source) else _FILES_OF_THE_RESOLVER
    for path in paths:
        with contextlib.suppress(OSError):
            if os.getxattr(path, MARKER).startswith(job.marker_prefix):
                raise TargetError(
                    f"{path} is needed to go on, and is not restored yet", "name a copy of it that lies elsewhere"
                )


def release(target: str) -> None:
    """An agent is gone for good: whoever waits, and whoever comes, gets EIO; never zeros. Raises ``NotRunning``, ``Busy``."""
    targets.need_root()
    real = os.path.realpath(target)
    name = directory_name(real)
    with spared(), only_agent(name):
        job = load(name)
        abandon(str(job.run_dir), job.restore_id, errno.EIO)


def _find_job(name: str, target: str, stack: contextlib.ExitStack) -> Job:
    """What the state says, else what the target does. ``stack`` holds what keeps copies of that target away."""
    try:
        job = as_target_says(load(name), target)
    except NotRunning:
        job = load_from_target(name, target)
        stack.enter_context(only_copy(job.restore_id))
        _refuse_shared(job, target)
    original = job.options.target
    if original != target:
        return _moved(job, original, target)
    if epoch.is_copied(target):
        raise _copied(target)
    return job


def _refuse_shared(job: Job, target: str) -> None:
    """Two restores of one id would share what guards them (pins of BPF), and their names elsewhere.

    Raises ``TargetError`` where the original, or another copy of it, is not finished.
    """
    for name in names():
        other = None
        with contextlib.suppress(ActiveRestoreError):
            other = lookup(name)
        if other is not None and other.restore_id == job.restore_id and name != job.name:
            raise _shared(target, other.target, f"; if that is gone for good, remove {state_root() / name}")


def _moved(job: Job, original: str, target: str) -> Job:
    """What is found elsewhere than it was begun: mounted there now, or copied with its file system (a snapshot of LVM).

    Raises ``TargetError`` where somebody still guards the original, and where a copy cannot be filled.
    """
    if pins(job.restore_id).is_dir():
        raise _shared(target, original)
    if is_copied(target, job.marker_prefix):
        raise _copied(target)
    return dataclasses.replace(job, options=dataclasses.replace(job.options, target=target))


def _copied(target: str) -> TargetError:
    return TargetError(f"placeholders in {target} are copies, which cannot be filled", "remove it, and restore again")


def _shared(target: str, other: str, else_: str = "") -> TargetError:
    what = f"{target} is a copy of {other}, or the other way round, and that is not restored yet"
    return TargetError(what, f"first: active-restore resume {other}{else_}")


def _refuse_second(name: str, target: str) -> None:
    """An unfinished restore of the same target must be finished, not begun again."""
    with contextlib.suppress(NotRunning):
        load(name)
        raise TargetError(f"an unfinished restore of {target} is there", f"go on with: active-restore resume {target}")
    with contextlib.suppress(NotRunning):
        load_from_target(name, target)
        raise TargetError(
            f"the target {target} is half restored (its state is lost)", f"go on with: active-restore resume {target}"
        )


def _see_through(
    job: Job,
    reporter: Reporter,
    env: Mapping[str, str],
    started: float,
    link: Link | None,
    *,
    wait_for_source: bool = False,
) -> Done:
    with contextlib.ExitStack() as stack:
        layer = None
        if job.phase in ("planning", "laying"):
            # Before the source: deriving its key takes as long as this process needs to start.
            layer = stack.enter_context(contextlib.closing(LayerProcess()))
        opening = _Opening(lambda: _open(job, env, wait=wait_for_source))
        # Meanwhile: both take a third of a second, on two processors.
        from active_restore.control.server import ControlServer
        from active_restore.run import Run

        source = stack.enter_context(contextlib.closing(opening.result()))
        job.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        job.stopped.unlink(missing_ok=True)
        run = Run(job, source, layer, reporter, started)
        if link is not None:
            link.begin(job.restore_id, job.options.source, run)
        return asyncio.run(_drive(run, job, reporter, ControlServer(job.run_dir / "control.sock", run)))


class _Opening:
    """Opens a source beside this thread, which can be interrupted meanwhile: a daemon."""

    def __init__(self, work: Callable[[], Source]) -> None:
        self._work = work
        self._outcome: Source | BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="opening", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._work()
        except BaseException as error:
            self._outcome = error

    def result(self) -> Source:
        """The source. Raises what opening it raised."""
        self._thread.join()
        assert self._outcome is not None
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


def _open(job: Job, env: Mapping[str, str], *, wait: bool) -> Source:
    turnstile = Turnstile(str(job.state_dir / "connections"), job.options.connections)
    book = AddressBook(str(job.state_dir / "addresses"))
    if not wait or job.phase not in ("revealing", "restoring", "refusing"):
        return open_source(job.options.source, env, turnstile, book)
    from active_restore.source.later import LaterSource

    return LaterSource(job.options.source, lambda: open_source(job.options.source, env, turnstile, book))


async def _drive(run: Run, job: Job, reporter: Reporter, server: ControlServer) -> Done:
    """The event loop serves signals, the control socket and the clock; the work has a thread of its own."""
    # A demand thread never waits longer than this for a thread of ours that computes.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # One for each file that is filled and not durable yet.
    allow_many_files()
    # A child of vfork(2) that waits for the guard at the program that it is to be would stop all of us, who may have to bring
    # the guard back.
    subprocess._USE_VFORK = False  # type: ignore[misc]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, run.stop)
    async with server:
        async with asyncio.TaskGroup() as group:
            ticker = group.create_task(_tick(run, reporter), name="ticker")
            outcome = await group.create_task(_work(run), name="work")
            ticker.cancel()
    # The verdict on predictions came last.
    reporter.event(Progress(run.status()))
    if isinstance(outcome, Exception):
        run.forget_failure()
        raise outcome
    if outcome is None:
        job.stopped.touch()
        raise Interrupted("interrupted", f"go on with: active-restore resume {job.options.target}")
    run.forget()
    return outcome


async def _work(run: Run) -> Done | Exception | None:
    """An exception is carried out as a value, so that it reaches the user as itself and not as a group."""
    try:
        return await asyncio.to_thread(run.work)
    except Exception as error:
        return error


async def _tick(run: Run, reporter: Reporter) -> None:
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        status = run.status()
        reporter.event(Progress(status))
        notify(f"WATCHDOG=1\nSTATUS={status.phase}: {status.files_done} of {status.files_total} files")
