"""Start keepers, and find the one that guards a target already."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from active_restore.errors import Busy, CapabilityMissing, NotRunning
from active_restore.intercept import wire
from active_restore.intercept.ledger import Ledger
from active_restore.linux.process import rouse

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
    """What keepers inherit. ``group`` and ``listener`` stay open in the caller until all are started."""

    group: int
    ledger: Ledger
    listener: socket.socket
    marker_prefix: bytes
    mask: int

    def start(self, watch_pid: int | None = None) -> int:
        """Start a keeper (or, with a process id to watch, a standby) and wait until it has all that it will ever need.

        A standby for a process that is dead takes over at once. Returns the process id. It is not our child: own session,
        silent, outliving the agent.
        """
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        watch = _watch(watch_pid) if watch_pid is not None else -1
        inherited = [self.group, self.ledger.fd, self.listener.fileno(), ready_write, *([watch] if watch >= 0 else [])]
        log = Path(self.listener.getsockname()).with_name("keeper.log")
        words = [*(str(fd) for fd in inherited[:4]), str(watch), str(self.mask), self.marker_prefix.hex()]
        try:
            with log.open("ab") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "active_restore.intercept.keeper", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=inherited,
                    cwd="/",
                )
        finally:
            os.close(ready_write)
            if watch >= 0:
                os.close(watch)
        try:
            words_back = os.read(ready_read, 32) if _readable(ready_read) else b""
            if not words_back:
                process.kill()
                raise CapabilityMissing("the keeper process did not start", f"see {log}; run: active-restore doctor")
        finally:
            os.close(ready_read)
            # The process that we started has forked the keeper and ended: the keeper is a child of init.
            process.wait()
        return int(words_back)


def _readable(fd: int) -> bool:
    # Not select(2): the agent has more descriptors than that knows.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(_START_SECONDS * 1000))


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


def rouse_all(marker_prefix: bytes) -> None:
    """Let the keepers of a restore go on if somebody has stopped them: nobody could take their place."""
    mark = marker_prefix.hex().encode()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (place / "cmdline").read_bytes().split(b"\0"):
                rouse(int(place.name), b"ar-")


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
