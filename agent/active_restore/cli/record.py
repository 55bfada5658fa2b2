"""``active-restore record``: note which files are opened first, so that a restore brings them first."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.cli.printers.json_lines import dump
from active_restore.cli.quantities import count
from active_restore.config import run_root
from active_restore.control.names import path_fields, shown
from active_restore.control.registry import directory_name
from active_restore.errors import ActiveRestoreError, Busy, NotRunning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from active_restore.cli.command import Subcommands

_STOP_SECONDS = 60


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    summary = "record which files are opened first, for the next backup to carry"
    parser = command.declare(commands, common, "record", summary, run)
    parser.add_argument("action", choices=("start", "stop", "show"))
    parser.add_argument("directory", metavar="DIR", nargs="?", default="/", help="what is backed up (default: /)")
    parser.add_argument(
        "--foreground", action="store_true", help="start: record until SIGTERM or Ctrl-C, for a service manager"
    )
    parser.add_argument("--detached", action="store_true", help=argparse.SUPPRESS)
    command.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Start, stop or show."""
    directory = command.absolute(arguments.directory)
    if arguments.action == "show":
        _show(directory, as_json=arguments.json)
    elif arguments.action == "stop":
        _stop(directory)
    elif arguments.foreground or arguments.detached:
        _record(directory, detached=arguments.detached)
    else:
        _start(directory)
    return 0


def _start(directory: str) -> None:
    """Leave a process behind that records; it has its marks when we return."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "active_restore", "record", "start", directory, "--detached"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
    )
    assert child.stdout is not None
    with child.stdout as out:
        if not out.readline():
            raise ActiveRestoreError(f"recording {shown(directory)} could not begin", f"exit code {child.wait()}; see above")
    print(f"recording what is opened below {shown(directory)}; end it with: active-restore record stop {shown(directory)}")


def _record(directory: str, *, detached: bool) -> None:
    from active_restore.predict.recorder import Recorder

    with _only_recorder(directory) as lock, contextlib.closing(Recorder(directory)) as recorder:
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(woken)

        def ready() -> None:
            os.write(lock, f"{os.getpid()}\n".encode())
            print("recording", flush=True)
            if detached:
                # Whoever started us reads no more than that, and waits for the end of what we could write to.
                nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                for stream in (1, 2):
                    os.dup2(nowhere, stream)
                os.close(nowhere)

        recorder.run(wake, ready)


@contextlib.contextmanager
def _only_recorder(directory: str) -> Iterator[int]:
    path = _lock_path(directory)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Busy(f"{shown(directory)} is being recorded already", "see: active-restore record show") from None
    try:
        os.ftruncate(lock, 0)
        yield lock
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _lock_path(directory: str) -> Path:
    return run_root() / f"record-{directory_name(directory)}"


def _stop(directory: str) -> None:
    try:
        with contextlib.closing(_Recording(directory)) as recording:
            recording.stop()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        raise NotRunning(f"{shown(directory)} is not being recorded", "begin with: active-restore record start") from None
    _show(directory, as_json=False, most=0)


class _Recording:
    """The process that records a directory. Raises ``FileNotFoundError``, ``ProcessLookupError`` or ``ValueError`` for none."""

    def __init__(self, directory: str) -> None:
        path = _lock_path(directory)
        with path.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                self._pidfd = os.pidfd_open(int(lock.read() or b"none"))
                return
        raise ProcessLookupError

    def stop(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
        if not select.select([self._pidfd], [], [], _STOP_SECONDS)[0]:
            raise ActiveRestoreError("the recorder does not end", "see its log")

    def close(self) -> None:
        os.close(self._pidfd)


def _show(directory: str, *, as_json: bool, most: int | None = None) -> None:
    from active_restore.predict import carried, order

    path = os.path.join(directory, os.fsdecode(order.FILE_NAME)) if os.path.isdir(directory) else directory
    touches = carried.load(path).touches
    for touch in touches[:most]:
        if as_json:
            print(dump({"event": "touch", **path_fields(touch.path), "unit": touch.unit, "ms": touch.ms}))
        else:
            print(f"{touch.ms / 1000:10.3f} s  {shown(touch.unit) or '-':24}  {shown(touch.path)}")
    if not as_json:
        units = len({touch.unit for touch in touches})
        print(f"{count(len(touches), 'file')} of {count(units, 'unit')} in {shown(path)} ({os.path.getsize(path):,} bytes)")
