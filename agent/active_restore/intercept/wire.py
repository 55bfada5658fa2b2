"""What keeper and agent say to each other: one msgpack array a packet of a SOCK_SEQPACKET Unix socket.

Keeper to agent: ``WELCOME`` (with the group and the ledger as SCM_RIGHTS) or ``BUSY``, then ``FAULT``s.
Agent to keeper: ``HELLO`` first, then ``DONE`` with answered event numbers, at the end ``DISARM``.
``ABANDON`` with an errno may be the first packet of anybody who is root.
"""

from __future__ import annotations

import select
import socket
from typing import Any, NamedTuple

import msgpack

HELLO, WELCOME, BUSY, FAULT, DONE, DISARM, ABANDON = range(7)
MAX_PACKET_BYTES = 64 * 1024
_BUFFER_BYTES = 16 * 1024 * 1024
_SOON_MS = 1
SOCKET_NAME = "keeper.sock"
# Python 3.11 does not name these two.
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33


class FaultPacket(NamedTuple):
    """A placeholder is wanted. ``number`` is the event's descriptor number in the keeper; offset -1: the open itself.

    ``intent`` is a ``model.Intent``.
    """

    number: int
    row: int
    tid: int
    intent: int
    since_ns: int
    offset: int
    length: int
    handle: bytes


def pack(kind: int, *values: object) -> bytes:
    """One packet."""
    return bytes(msgpack.packb([kind, *values]))


def unpack(packet: bytes) -> tuple[int, list[Any]]:
    """Kind and values of a packet. Raises ``ValueError`` for what is none."""
    words = msgpack.unpackb(packet)
    if not isinstance(words, list) or not words or not isinstance(words[0], int):
        raise ValueError("not a packet")
    return words[0], words[1:]


def widen(sock: socket.socket) -> None:
    """Room for thousands of packets in flight."""
    for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
        sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)


def comes_soon(sock: socket.socket) -> bool:
    """Whether a packet is there, or comes within a millisecond."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(_SOON_MS))
