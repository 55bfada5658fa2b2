"""The keeper: a small process that reads the fanotify group, so that the death of the agent lets nobody through.

It answers for all files that are no placeholders by itself, passes faults on to whichever agent is connected, and keeps
those that no agent has answered yet. A standby waits for its death and takes over: the group, the shared ledger and the
listening socket were inherited by both. Everything is imported and locked into memory before the file system is marked.

Not guaranteed: the one or two events that a keeper was just looking at when it was killed are refused with EIO. (Not with
EAGAIN: from read(2) many programs take that for "no data yet" and go on with what they have.)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from active_restore.intercept import wire
from active_restore.intercept.guard import Guard, answer
from active_restore.intercept.ledger import Ledger
from active_restore.intercept.warden import Warden
from active_restore.intercept.wire import FaultPacket
from active_restore.linux import fanotify
from active_restore.linux.latency import Wakefulness
from active_restore.linux.process import (
    collect_no_garbage,
    hurry,
    is_alive,
    lock_memory,
    make_room_for_files,
    name_thread,
    spare_from_oom_killer,
)
from active_restore.marker import restore_of

_LOOK_MS = 10_000
_REST_MS = 1_000
# Two bursts of the guard within this time are the beginning of many.
_BURST_SECONDS = 0.25
_BACKLOG, _BURST = b"x", b"b"
# Our own descriptors are below, those of events above: a standby that takes over must own no number of a waiting event.
_FIRST_TICKET = 64
# How many events beyond the highest noted one the dead keeper may have read.
_UNNOTED = 64


class Keeper:
    """One keeper process; ``run`` returns when an agent says that nothing is left."""

    def __init__(
        self, group: int, ledger: Ledger, listener: socket.socket, marker_prefix: bytes, mask: int, *, is_stopgap: bool = False
    ) -> None:
        self._group = group
        self._is_stopgap = is_stopgap
        self._ledger = ledger
        self._listener = listener
        self._lock = threading.Lock()
        self._held: dict[int, FaultPacket] = {}
        self._backlog: deque[FaultPacket] = deque()
        self._agent: socket.socket | None = None
        self._guard = Guard(group, ledger, marker_prefix, mask, self._forward, self._tell_burst)
        self._warden = Warden(restore_of(marker_prefix))
        self._wakefulness, self._last_burst = Wakefulness(), 0.0
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def inherit(self) -> None:
        """Take over from a dead keeper: its unanswered numbers must not be given out again by our own reads.

        Numbers are descriptor numbers, so every lower one is occupied: known ones until they are answered, and the rest
        because the dead keeper may have read an event without noting it.
        """
        left = self._ledger.unanswered()
        ceiling = max(self._ledger.highest, _FIRST_TICKET)
        occupy(ceiling)
        for number in range(_FIRST_TICKET, ceiling + _UNNOTED):
            row = left.get(number)
            if row is not None:
                self._held[number] = FaultPacket(number, row, *self._ledger.wish(number))
            elif number not in self._held:
                # Read but not judged: which file it is cannot be known any more. An error is better than a hang.
                answer(self._group, number, errno.EIO)
                self._ledger.close_ticket(number)
        if self._ledger.refusal:
            self._abandon(self._ledger.refusal)

    def run(self) -> None:
        """Guard, and talk to agents."""
        occupy(_FIRST_TICKET - 1)
        threading.Thread(target=self._guard_forever, name="guard", daemon=True).start()
        self._warden.begin()
        while self._turn():
            pass

    def _guard_forever(self) -> None:
        name_thread("ar-guard")
        with contextlib.suppress(OSError):
            # Whoever opens a file here waits for us.
            hurry()
        try:
            self._guard.run(self._is_relieved if self._is_stopgap else None)
        finally:
            # A keeper that cannot guard, or does no more, must not look alive: the standby takes over when this process ends.
            os._exit(1)

    def _is_relieved(self) -> bool:
        """Without an agent nobody would take the place of the standby, should that be killed, too."""
        standby = self._ledger.standby
        return self._agent is not None and standby != os.getpid() and is_alive(standby)

    def _forward(self, packet: FaultPacket) -> None:
        """Called by the guard: hand a fault to the agent, without ever waiting for it."""
        with self._lock:
            refusal = self._ledger.refusal
            if refusal:
                # Abandoned since the guard looked: those who are held have been refused already.
                self._guard.answer(packet.number, refusal)
                return
            self._held[packet.number] = packet
            if self._agent is None:
                return
            if self._backlog or not self._send(packet):
                self._backlog.append(packet)
                self._wake(_BACKLOG)

    def _tell_burst(self) -> None:
        """Called by the guard."""
        self._wake(_BURST)

    def _wake(self, why: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, why)

    def _send(self, packet: FaultPacket) -> bool:
        assert self._agent is not None
        try:
            self._agent.send(wire.pack(wire.FAULT, *packet), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            # The agent is gone; its end of file arrives in _turn, and what is held goes to the next one.
            return True
        return True

    def _turn(self) -> bool:
        poll = select.poll()
        # First: an agent that has died must be forgotten before its successor is welcomed.
        if self._agent is not None:
            poll.register(self._agent, select.POLLIN | (select.POLLOUT if self._backlog else 0))
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        ready = poll.poll(_REST_MS if self._wakefulness.is_on else _LOOK_MS if self._agent is None else None)
        if time.monotonic() - self._last_burst > _REST_MS / 1e3:
            self._wakefulness.end()
        if not ready and self._agent is None and not self._guards_something():
            # Nobody comes back for a file system that was unmounted (the marks went with it).
            self._ledger.disarm()
            return False
        for fd, happened in ready:
            if fd == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    if _BURST in os.read(fd, 4096):
                        self._keep_awake()
            elif fd == self._listener.fileno():
                self._welcome()
            elif happened & select.POLLOUT and not happened & (select.POLLIN | select.POLLHUP):
                self._flush()
            elif not self._listen():
                return False
        return True

    def _keep_awake(self) -> None:
        """Many files are opened for the first time, or read while they are not whole: each time two processors are woken.

        That takes 35 us each, unless they do not sleep. Not by the guard itself, which opens no file.
        """
        last, self._last_burst = self._last_burst, time.monotonic()
        if self._last_burst - last < _BURST_SECONDS:
            self._wakefulness.begin()

    def _guards_something(self) -> bool:
        return b"fanotify sdev:" in Path(f"/proc/self/fdinfo/{self._group}").read_bytes()

    def _flush(self) -> None:
        with self._lock:
            while self._backlog and self._agent is not None and self._send(self._backlog[0]):
                self._backlog.popleft()

    def _welcome(self) -> None:
        """A new connection: only root may come, and only one agent at a time."""
        peer, _ = self._listener.accept()
        _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        peer.settimeout(5.0)
        try:
            kind, values = wire.unpack(peer.recv(wire.MAX_PACKET_BYTES)) if uid == 0 else (-1, [])
        except (OSError, ValueError):
            kind, values = -1, []
        if kind == wire.ABANDON:
            self._abandon(int(values[0]))
            with contextlib.suppress(OSError):
                peer.send(wire.pack(wire.WELCOME))
        if kind != wire.HELLO or self._agent is not None:
            with contextlib.suppress(OSError):
                peer.send(wire.pack(wire.BUSY))
            peer.close()
            return
        peer.setblocking(True)
        wire.widen(peer)
        inheritance = [self._group, self._listener.fileno(), self._ledger.fd]
        self._warden.end()
        # Before it is told that it is the agent: from then on nobody is refused.
        refusal, self._ledger.refusal = self._ledger.refusal, 0
        try:
            socket.send_fds(peer, [wire.pack(wire.WELCOME, os.getpid())], inheritance)
        except OSError:
            # It died while it said hello.
            peer.close()
            self._warden.begin()
            if refusal:
                self._abandon(refusal)
            return
        with self._lock:
            self._agent = peer
            self._backlog = deque(self._held.values())
        self._flush()

    def _listen(self) -> bool:
        """One packet from the agent; ``False`` ends the keeper."""
        assert self._agent is not None
        try:
            packet = self._agent.recv(wire.MAX_PACKET_BYTES)
        except OSError:
            packet = b""
        if not packet:
            self._lose_agent()
            return True
        kind, values = wire.unpack(packet)
        if kind == wire.DONE:
            self._done(values[0])
        elif kind == wire.ABANDON:
            self._abandon(int(values[0]))
            self._lose_agent()
        elif kind == wire.DISARM:
            self._disarm()
            return False
        return True

    def _lose_agent(self) -> None:
        """The agent died or left: everything that waits goes on waiting."""
        with self._lock:
            if self._agent is not None:
                self._agent.close()
            self._agent = None
            self._backlog.clear()
        self._warden.begin()

    def _done(self, numbers: list[Any]) -> None:
        for number in numbers:
            with self._lock:
                known = self._held.pop(number, None)
            if known is not None:
                self._guard.forget(number)

    def _abandon(self, refusal: int) -> None:
        """Refuse from now on, and whoever waits."""
        self._ledger.refusal = refusal
        with self._lock:
            held, self._held = self._held, {}
            self._backlog.clear()
        for number in held:
            self._guard.answer(number, refusal)

    def _disarm(self) -> None:
        """Nothing is left. Events that were read but never noted (a killed keeper) are answered by number now."""
        self._ledger.disarm()
        with contextlib.suppress(OSError):
            fanotify.mark_path(self._group, fanotify.FAN_MARK_FLUSH | fanotify.FAN_MARK_FILESYSTEM, 0, "/")
        for number in range(self._ledger.highest + 64):
            answer(self._group, number, 0)


def occupy(highest: int) -> None:
    """Take every free descriptor number up to this one."""
    spare = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    beyond = fcntl.fcntl(spare, fcntl.F_DUPFD_CLOEXEC, highest + 1)
    os.close(spare)
    for number in range(highest + 1):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(beyond, number, inheritable=False)
    os.close(beyond)


def lowered(fd: int) -> int:
    """The same descriptor with a number of our own range."""
    if fd < _FIRST_TICKET:
        return fd
    low = os.dup(fd)
    os.close(fd)
    return low


def prepare(label: str, *, is_stopgap: bool = False) -> None:
    """Make this process a child of init, hard to kill by accident and independent of every disk.

    The memory of a copy of the agent is not made resident: that would be all of its mappings.
    """
    os.setsid()
    if os.fork():
        os._exit(0)
    name_thread(label)
    with contextlib.suppress(OSError):
        spare_from_oom_killer()
    with contextlib.suppress(OSError):
        lock_memory(as_used=is_stopgap)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        ceiling = min(1 << 20, int(open("/proc/sys/fs/nr_open").read()))  # noqa: SIM115 - read once, closed at once
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, max(hard, ceiling)))
    make_room_for_files()
    collect_no_garbage()


def main(arguments: list[str], *, is_stopgap: bool = False) -> None:
    """``keeper GROUP LEDGER LISTENER READY WATCH MASK PREFIX``: descriptors, event mask and marker prefix in hex.

    ``WATCH`` is -1 for the first keeper; the standby's is a pidfd of the keeper that it stands by for. ``is_stopgap``: a copy
    of the agent, which goes when a standby is there and an agent lives.
    """
    group, ledger_fd, listener_fd, ready, watch = (lowered(int(word)) for word in arguments[:5])
    mask = int(arguments[5])
    prefix = bytes.fromhex(arguments[6])
    prepare("ar-keeper" if watch < 0 else "ar-standby", is_stopgap=is_stopgap)
    ledger = Ledger(ledger_fd)
    listener = socket.socket(fileno=listener_fd)
    keeper = Keeper(group, ledger, listener, prefix, mask, is_stopgap=is_stopgap)
    if watch < 0:
        ledger.await_turn()
        ledger.keep(os.getpid())
    else:
        ledger.stand_by(os.getpid())
    # The agent that started us may be dead by now, and the keeper with it: then we are all that is left of the guard.
    with contextlib.suppress(BrokenPipeError):
        os.write(ready, str(os.getpid()).encode())
    os.close(ready)
    if watch >= 0:
        stand_by(watch)
        ledger.await_turn()
        if ledger.disarmed:
            return
        ledger.keep(os.getpid())
        name_thread("ar-keeper")
        keeper.inherit()
    keeper.run()


def stand_by(pidfd: int) -> None:
    """Wait for the end of the keeper."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    os.close(pidfd)


if __name__ == "__main__":
    main(sys.argv[1:])
