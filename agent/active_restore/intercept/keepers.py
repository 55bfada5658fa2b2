"""Start keepers, and find the one that guards a target already."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

from active_restore.errors import Busy, CapabilityMissing, NotRunning
from active_restore.intercept import keeper, wire
from active_restore.intercept.ledger import LEDGER_NAME, Ledger
from active_restore.linux.process import is_alive, rouse

_LOG_NAME = "keeper.log"
_HIGHEST = (1 << 31) - 1
_START_SECONDS = 60
_ANSWER_SECONDS = 5
_LOOK_SECONDS = 1.0
_LAST_LOOKS = 30


class _Connection(socket.socket):
    """Closed by whoever lets go of it last: another thread may be about to use it, and must not meet a number used anew."""

    def __del__(self) -> None:
        self.close()


class Link(NamedTuple):
    """A connection to a keeper: its socket, descriptors of the group and of the listening socket, ledger, process id."""

    sock: socket.socket
    group: int
    listener: int
    ledger: Ledger
    keeper_pid: int


class Keepers(NamedTuple):
    """What keepers inherit. ``group`` and ``listener`` stay open in the caller until all are started.

    ``log`` takes what they complain of (``open_log``): nothing is opened later, when nobody may be there who would answer that.
    """

    group: int
    ledger: Ledger
    listener: socket.socket
    marker_prefix: bytes
    mask: int
    log: int

    def start(self, watch_pid: int | None = None) -> int:
        """Start a keeper (or, with a process id to watch, a standby) and wait until it has all that it will ever need.

        Returns the process id. It is not our child: own session, silent, outliving the agent. A standby for a process that is
        dead takes over at once, and is a copy of ourselves: programs cannot be started where nobody answers for their files.
        It goes as soon as somebody stands by for it and an agent lives.
        """
        watch = _watch(watch_pid) if watch_pid is not None else -1
        is_alone = watch >= 0 and _is_readable(watch, 0)
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                inherited = [self.group, self.ledger.fd, self.listener.fileno(), ready_write, *([watch] if watch >= 0 else [])]
                child = os.fork()
                if not child:
                    self._become(inherited, is_alone=is_alone)
            finally:
                os.close(ready_write)
            word = _await(ready_read, child, -1 if is_alone else watch)
        finally:
            for fd in (ready_read, watch):
                if fd >= 0:
                    os.close(fd)
        if word:
            return int(word)
        if watch_pid is not None and not is_alone and not is_alive(watch_pid):
            return self.start(watch_pid)
        log = Path(self.listener.getsockname()).with_name(_LOG_NAME)
        raise CapabilityMissing("the keeper process did not start", f"see {log}; run: active-restore doctor")

    def _become(self, inherited: list[int], *, is_alone: bool) -> NoReturn:
        """In the child: a keeper, with these descriptors and no others."""
        try:
            group, ledger, listener, ready, *watch = _keep_only(inherited, self.log)
            words = [*map(str, (group, ledger, listener, ready, *(watch or [-1]), self.mask)), self.marker_prefix.hex()]
            if is_alone:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                keeper.main(words, is_stopgap=True)
                os._exit(0)
            for fd in (group, ledger, listener, ready, *watch):
                os.set_inheritable(fd, True)
            os.chdir("/")
            os.execv(sys.executable, [sys.executable, "-P", "-m", "active_restore.intercept.keeper", *words])
        except BaseException:
            traceback.print_exc(file=open(2, "w", closefd=False))  # noqa: SIM115 - ours may belong to another thread
        finally:
            os._exit(1)


def open_log(run_dir: str) -> int:
    """A descriptor for ``Keepers.log``."""
    return os.open(Path(run_dir) / _LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def need_standby(link: Link, marker_prefix: bytes, log: int) -> None:
    """Start a standby unless one is there. Raises ``CapabilityMissing`` and ``OSError``."""
    ledger = link.ledger
    for pid in (ledger.keeper, ledger.standby):
        rouse(pid, b"ar-")
    # The standby first: one that is just taking over is found as the keeper then.
    if is_alive(ledger.standby) or (is_alive(ledger.keeper) and ledger.keeper != link.keeper_pid):
        return
    with socket.socket(fileno=os.dup(link.listener)) as listener:
        Keepers(link.group, ledger, listener, marker_prefix, ledger.mask, log).start(ledger.keeper)


def _keep_only(inherited: list[int], log: int) -> list[int]:
    """Close all descriptors but these, which get low numbers; errors go to ``log``."""
    wanted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) if fd < 3 else fd for fd in (log, *inherited)]
    for before, after in itertools.pairwise((2, *sorted(wanted), _HIGHEST)):
        os.closerange(before + 1, after)
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in wanted]
    for fd in wanted:
        os.close(fd)
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number, fd in enumerate((nothing, nothing, kept[0])):
        os.dup2(fd, number)
    os.close(nothing)
    os.close(kept[0])
    return kept[1:]


def _await(ready: int, child: int, watch: int) -> bytes:
    """The process id of the keeper that ``child`` has made, empty where there is none.

    Once the process of ``watch`` has ended, the child is ended, too, should it still begin: it may wait for an answer to the
    open of a file, which nobody would give. The keeper that it may have made already goes on.
    """
    ended = False
    try:
        # Not select(2): the agent has more descriptors than that knows.
        poll = select.poll()
        for fd in (ready, watch):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        found = [fd for fd, _ in poll.poll(_START_SECONDS * 1000)]
        if found == [watch]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            ended = True
        elif not found:
            return b""
        return os.read(ready, 32) if _is_readable(ready, _START_SECONDS * 1000) else b""
    finally:
        if not ended:
            # It has made the keeper and ended: that is a child of init. Or it has not, and never will.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _is_readable(fd: int, timeout_ms: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def _watch(pid: int) -> int:
    """A descriptor that polls as ready when the process has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        ended, other = os.pipe2(os.O_CLOEXEC)
        os.close(other)
        return ended


def listen(run_dir: str) -> socket.socket:
    """The keeper's listening socket (mode 0600) in ``run_dir``."""
    path = Path(run_dir) / wire.SOCKET_NAME
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(16)
    return listener


def _dial(run_dir: str) -> socket.socket:
    sock = _Connection(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    sock.settimeout(_ANSWER_SECONDS)
    try:
        sock.connect(str(Path(run_dir) / wire.SOCKET_NAME))
    except OSError as error:
        sock.close()
        raise NotRunning("no keeper guards this target") from error
    return sock


def connect(run_dir: str) -> Link:
    """Become the agent of the keeper in ``run_dir``.

    Raises ``NotRunning`` where none listens, ``TimeoutError`` where it does not answer, ``Busy`` where it has an agent.
    """
    sock = _dial(run_dir)
    try:
        sock.send(wire.pack(wire.HELLO))
        packet, fds, _, _ = socket.recv_fds(sock, wire.MAX_PACKET_BYTES, 3)
    except OSError as error:
        sock.close()
        raise TimeoutError("the keeper does not answer") from error
    kind, values = wire.unpack(packet) if packet else (wire.BUSY, [])
    if kind != wire.WELCOME or len(fds) != 3:
        sock.close()
        raise Busy("another agent already serves this target", "see: active-restore status")
    for fd in fds:
        os.set_inheritable(fd, False)
    sock.settimeout(None)
    wire.widen(sock)
    return Link(sock, fds[0], fds[1], Ledger(fds[2]), int(values[0]))


def rouse_all() -> None:
    """Let keepers go on that somebody has stopped, of whichever restore: nobody could take their place.

    By what they hold: a copy of an agent has that one's command line.
    """
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (place / "comm").read_bytes().startswith(b"ar-") and _has_ledger(place):
                rouse(int(place.name), b"ar-")


def _has_ledger(process: Path) -> bool:
    return any(os.readlink(fd).startswith(f"/memfd:{LEDGER_NAME}") for fd in (process / "fd").iterdir())


def abandon(run_dir: str, errno: int) -> None:
    """Without an agent: refuse all who wait and will come, with ``errno``. Raises ``NotRunning``."""
    with _dial(run_dir) as sock:
        sock.send(wire.pack(wire.ABANDON, errno))
        sock.recv(wire.MAX_PACKET_BYTES)


def await_end(link: Link) -> None:
    """Wait (bounded) until the keeper has acted: it closes the connection."""
    link.sock.settimeout(_LOOK_SECONDS)
    for _ in range(_LAST_LOOKS):
        rouse(link.ledger.keeper, b"ar-")
        with contextlib.suppress(TimeoutError):
            while link.sock.recv(wire.MAX_PACKET_BYTES):
                pass
            return
