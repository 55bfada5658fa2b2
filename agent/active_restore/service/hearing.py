"""The socket on which children tell us how they are: sd_notify(3), as they would tell systemd."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_BYTES = 4096
_CREDENTIALS = struct.Struct("3i")


class Message(NamedTuple):
    """From process ``pid``: assignments like ``READY=1``, and descriptors, which are the receiver's to close."""

    pid: int
    words: dict[str, str]
    fds: list[int]


class Hearing:
    """``address`` is for $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self.address = str(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        before = os.umask(0o177)
        try:
            self.sock.bind(self.address)
        finally:
            os.umask(before)

    def messages(self) -> Iterator[Message]:
        """What has come since the last time, from root only."""
        while True:
            ancillary_bytes = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(8 * 4)
            try:
                text, ancillary, _, _ = self.sock.recvmsg(_MAX_BYTES, ancillary_bytes, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            pid, uid, fds = 0, -1, list[int]()
            for _, kind, data in ancillary:
                if kind == socket.SCM_CREDENTIALS:
                    pid, uid, _ = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
                elif kind == socket.SCM_RIGHTS:
                    fds += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
            words = dict(line.split("=", 1) for line in text.decode(errors="replace").split("\n") if "=" in line)
            if uid == 0:
                yield Message(pid, words, fds)
            else:
                for fd in fds:
                    os.close(fd)

    def close(self) -> None:
        """Nobody is heard any more."""
        self.sock.close()
        os.unlink(self.address)
