"""Our command and its workers as real processes, but without the start of an interpreter for each: many lives are cheap.

``start`` forks a process in which everything is imported already. In it, ``subprocess.Popen`` for a worker or a layer asks a
process that was forked before any thread was made (``_Spawner``); what that one forks becomes a child of the agent, as
subprocess would make it. Keepers are started as ever: they lock all their memory, which should be small.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from typing import IO, TYPE_CHECKING, Any

import active_restore.agent
import active_restore.cli.main
import active_restore.cli.resume
import active_restore.cli.verify
import active_restore.intercept.fanotify
import active_restore.predict.process
import active_restore.restore.layer_process
import active_restore.restore.worker
import active_restore.verify
from active_restore.linux.libc import check, libc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_WARM = frozenset({"active_restore.restore.worker", "active_restore.restore.layer_process", "active_restore.predict.process"})
_PR_SET_CHILD_SUBREAPER = 36
_MAX_REQUEST_BYTES = 1 << 16
_MAX_FDS = 64
_BEYOND = 1000


def start(arguments: Sequence[str], env: Mapping[str, str], out: Path, err: Path) -> int:
    """``active-restore ARGUMENTS`` in a child of this process, which must have one thread only; its process id."""
    return _forked(lambda: _command(arguments, env, out, err))


def wait(pid: int) -> int:
    """Its exit code, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _forked(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = work()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def _command(arguments: Sequence[str], env: Mapping[str, str], out: Path, err: Path) -> int:
    os.environ.clear()
    os.environ.update(env)
    nothing = os.open(os.devnull, os.O_RDONLY)
    streams = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in (out, err)]
    _stand_in([nothing, *streams], [0, 1, 2])
    spawner = _Spawner()
    subprocess.Popen = spawner.popen  # type: ignore[assignment, misc]
    return active_restore.cli.main.main(list(arguments))


def _stand_in(fds: Sequence[int], numbers: Sequence[int]) -> None:
    """Give descriptors these numbers, and Python its streams anew."""
    beyond = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _BEYOND) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(beyond, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0, closefd=False), *(os.fdopen(n, "w", closefd=False) for n in (1, 2))


class _Spawner:
    """The agent's end of a process that forks workers for it."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen
        self._lock = threading.Lock()
        self._agent = os.getpid()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not os.fork():
            self._sock.close()
            with contextlib.suppress(BaseException):
                self._serve(theirs)
            os._exit(0)
        theirs.close()

    def popen(self, argv: Sequence[str], **options: Any) -> Any:
        """In the place of ``subprocess.Popen``."""
        if list(argv[:3]) != [sys.executable, "-P", "-m"] or argv[3] not in _WARM:
            return self._popen(argv, **options)
        assert options.keys() <= {"stdin", "stdout", "pass_fds", "cwd"}, options
        assert options["stdin"] == options["stdout"] == subprocess.PIPE
        down_read, down_write = os.pipe2(os.O_CLOEXEC)
        up_read, up_write = os.pipe2(os.O_CLOEXEC)
        passed = [int(fd) for fd in options.get("pass_fds", ())]
        request = json.dumps({"module": argv[3], "numbers": [0, 1, 2, *passed]}).encode()
        with self._lock:
            # Whoever loses its parent now becomes our child: the worker, whose parent has already ended.
            check(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
            socket.send_fds(self._sock, [request], [down_read, up_write, 2, *passed])
            pid = int(self._sock.recv(64))
            check(libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0), "prctl")
        os.close(down_read)
        os.close(up_write)
        return _Child(pid, os.fdopen(down_write, "wb"), os.fdopen(up_read, "rb"))

    def _serve(self, sock: socket.socket) -> None:
        """Until the agent is gone."""
        while True:
            request, fds, _, _ = socket.recv_fds(sock, _MAX_REQUEST_BYTES, _MAX_FDS)
            if not request:
                return
            read, write = os.pipe()
            between = _forked(lambda: self._between(json.loads(request), fds, write))  # noqa: B023
            os.close(write)
            for fd in fds:
                os.close(fd)
            os.waitpid(between, 0)
            sock.send(os.read(read, 64))
            os.close(read)

    def _between(self, request: dict[str, Any], fds: list[int], write: int) -> int:
        pid = _forked(lambda: self._worker(request, fds, write))
        os.write(write, str(pid).encode())
        return 0

    def _worker(self, request: dict[str, Any], fds: list[int], write: int) -> int:
        os.close(write)
        while os.getppid() != self._agent:
            os.sched_yield()
        _stand_in(fds, request["numbers"])
        os.chdir("/")
        sys.argv = [request["module"]]
        libc.prctl(15, ctypes.c_char_p(request["module"].rpartition(".")[2].encode()), 0, 0, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        return 0


class _Child:
    """What is used of ``subprocess.Popen``."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self._code: int | None = None

    def wait(self) -> int:
        """Its exit code."""
        if self._code is None:
            self._code = wait(self.pid)
        return self._code

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self._code is None:
            os.kill(self.pid, 9)
