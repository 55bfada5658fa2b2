"""sd_notify(3): tell systemd how we are."""

from __future__ import annotations

import os
import socket


def notify(text: str) -> None:
    """Send ``text`` (like ``READY=1``) where $NOTIFY_SOCKET says; nothing happens without it or when nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(text.encode(), socket.MSG_DONTWAIT, address)
        except OSError:
            return
