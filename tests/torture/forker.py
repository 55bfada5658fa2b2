"""A process that forks agents: ``python -m tests.torture.forker SOCKET``. It has one thread, and everything is imported.

A request brings arguments and environment, and descriptors for output, errors and for what becomes of the agent: its process
id, and later its exit code, a line each.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import sys
from pathlib import Path

from tests.torture import warm

ROOM = "ACTIVE_RESTORE_ROOM"
ROOM_BYTES = 400
"""A variable of so many bytes keeps room for what a rig knows its processes by."""
_MARK = "ACTIVE_RESTORE_RUN"
_MAX_REQUEST_BYTES = 1 << 17
_ENV_START = 50


class Forker:
    """``run`` until the test is gone and all agents have ended."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._agents: dict[int, tuple[int, int]] = {}

    def run(self) -> None:
        """Fork, and tell of ends."""
        listening = True
        while listening or self._agents:
            for fd, _ in self._poll.poll():
                if fd in self._agents:
                    self._tell(fd)
                elif not self._begin():
                    self._poll.unregister(self._sock)
                    listening = False

    def _begin(self) -> bool:
        request, fds, _, _ = socket.recv_fds(self._sock, _MAX_REQUEST_BYTES, 3)
        if not request:
            return False
        arguments, env = json.loads(request)
        out, err, fate = fds
        pid = warm.forked(lambda: self._agent(arguments, env, fds))
        os.close(out)
        os.close(err)
        os.write(fate, b"%d\n" % pid)
        pidfd = os.pidfd_open(pid)
        self._agents[pidfd] = (pid, fate)
        self._poll.register(pidfd, select.POLLIN)
        return True

    def _agent(self, arguments: list[str], env: dict[str, str], fds: list[int]) -> int:
        out, err, fate = fds
        for fd in (fate, *self._agents, *(other for _, other in self._agents.values())):
            os.close(fd)
        self._sock.close()
        show(f"{_MARK}={env[_MARK]}".encode())
        return warm.command(arguments, env, out, err)

    def _tell(self, pidfd: int) -> None:
        pid, fate = self._agents.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        code = warm.wait(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(fate, b"%d\n" % code)
        os.close(fate)


def show(mark: bytes) -> None:
    """Be seen with this variable in ``/proc/PID/environ``, in the place of ``ROOM``."""
    place = Path("/proc/self/environ").read_bytes().index(f"{ROOM}=".encode())
    stat = Path("/proc/self/stat").read_text()
    start = int(stat[stat.rindex(")") + 2 :].split()[_ENV_START - 3])
    ctypes.memmove(start + place, mark.ljust(ROOM_BYTES, b"\0"), ROOM_BYTES)


if __name__ == "__main__":
    Forker(socket.socket(fileno=int(sys.argv[1]))).run()
