"""sd_notify(3) and sd_listen_fds(3): what we tell systemd, or our own service, and what it kept for us."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

GUARD_PARTS = ("group", "listener", "ledger")
"""The descriptors that make a guard, see ``store_descriptor``."""
_FIRST_LISTEN_FD = 3


def notify(text: str) -> None:
    """Send ``text`` (like ``READY=1``) where $NOTIFY_SOCKET says; nothing happens without it or when nobody listens."""
    send(os.environ.get("NOTIFY_SOCKET", ""), text)


def send(address: str, text: str, fds: Sequence[int] = ()) -> None:
    """The same to a socket that is known: a path, or an abstract name after ``@``. Never waits, never raises."""
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        with contextlib.suppress(OSError):
            sock.connect(address)
            socket.send_fds(sock, [text.encode()], fds, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def store_descriptor(address: str, label: str, fd: int) -> None:
    """Let whoever listens there keep a copy. One message each: the order of several in one is not kept.

    FDPOLL=0: systemd must not drop the copy when the descriptor polls as hung up.
    """
    send(address, f"FDSTORE=1\nFDNAME={label}\nFDPOLL=0", [fd])


def forget_descriptors(label: str) -> None:
    """Let the service manager close its copies with this label."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={label}")


def listen_descriptors() -> list[tuple[str, int]]:
    """What the service manager kept for us, with labels; ours from now on, and not our children's."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    labels = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = list(zip(labels, range(_FIRST_LISTEN_FD, _FIRST_LISTEN_FD + count), strict=False))
    for _, fd in found:
        os.set_inheritable(fd, False)
    return found
