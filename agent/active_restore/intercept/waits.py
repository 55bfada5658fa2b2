"""Waits as the kernel side keeps them (maps ``waiters`` and ``orders``): the truth about who waits, whoever is alive."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from active_restore.ebpf import abi
from active_restore.ebpf.maps import NO_EXIST
from active_restore.marker import MARKER, marker_row
from active_restore.model import Intent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from active_restore.ebpf.maps import Map
    from active_restore.linux.inode_numbers import InodeNumbers

_TID = struct.Struct("=I")
_ABI = abi.load()
_WAIT, _ORDER = _ABI.structs["wait"], _ABI.structs["order"]
_SPIN, _STOP = _ABI.constants["HOLD_SPIN"], _ABI.constants["HOLD_STOP"]
_PATIENT = _ABI.constants["POLICY_BACKGROUND"]
_UNKNOWN = (1 << 64) - 1
_GONE = frozenset({errno.ESTALE, errno.ENOENT, errno.ENODATA, errno.EOPNOTSUPP})


class Wait(NamedTuple):
    """One wait of one thread; ``tid`` and ``since_ns`` name it. ``stopped``: its process was told to stop.

    ``patient`` is as in ``model.Fault``; ``passes`` is how often it has come by.
    """

    tid: int
    tgid: int
    since_ns: int
    inode: int
    generation: int
    intent: Intent
    range: tuple[int, int] | None
    comm: str
    stopped: bool
    patient: bool = False
    passes: int = 1

    @property
    def key(self) -> tuple[int, int]:
        """What names this wait."""
        return self.tid, self.since_ns


def decode(raw: bytes) -> Wait:
    """A ``struct wait``."""
    wait = _WAIT.unpack(raw)
    span = None if wait["length"] == _UNKNOWN else (wait["position"], wait["length"])
    return Wait(
        wait["tid"],
        wait["tgid"],
        wait["since_ns"],
        wait["ino"],
        wait["generation"],
        Intent(wait["intent"]),
        span,
        wait["comm"].split(b"\0", 1)[0].decode(errors="replace"),
        wait["hold"] != _SPIN,
        wait["policy"] == _PATIENT,
        wait["passes"],
    )


class Waiters:
    """The two maps. Everything may be gone at any time: threads die, and threads that go on enter new waits."""

    def __init__(self, waiters: Map, orders: Map) -> None:
        self._waiters, self._orders = waiters, orders

    def all(self) -> Iterator[Wait]:
        """Everybody who waits."""
        for _, raw in self._waiters.items():
            yield decode(raw)

    def peek(self, tid: int) -> Wait | None:
        """What this thread waits for."""
        raw = self._waiters.get(_TID.pack(tid))
        return None if raw is None else decode(raw)

    def forget(self, tid: int, since_ns: int) -> Wait | None:
        """End this wait; returns its last state, ``None`` where the thread no longer waits or waits for something else."""
        raw = self._waiters.take(_TID.pack(tid))
        if raw is None:
            return None
        wait = decode(raw)
        if wait.since_ns == since_ns:
            return wait
        # A newer wait of that thread. Where it reported itself again meanwhile, that newest entry stays.
        with contextlib.suppress(FileExistsError):
            self._waiters.put(_TID.pack(tid), raw, NO_EXIST)
        return None

    def order_stop(self, wait: Wait) -> None:
        """From its next pass on, this thread's process is stopped instead of spinning."""
        self._orders.put(_TID.pack(wait.tid), _ORDER.pack(since_ns=wait.since_ns, hold=_STOP))

    def order_refusal(self, tid: int, since_ns: int, errno: int) -> None:
        """At its next pass, this wait ends with an error."""
        self._orders.put(_TID.pack(tid), _ORDER.pack(since_ns=since_ns, verdict=errno))

    def drop_old_orders(self) -> None:
        """Remove the orders of waits that have ended."""
        for key, raw in list(self._orders.items()):
            waiting = self._waiters.get(key)
            if waiting is None or decode(waiting).since_ns != _ORDER.unpack(raw)["since_ns"]:
                self._orders.remove(key)


def row_of(numbers: InodeNumbers, handle: bytes, prefix: bytes) -> int | None:
    """The row in an inode's marker; ``None`` where it is no placeholder (a number used again, a settled file).

    Raises ``OSError``, and ``ValueError`` where the marker is broken.
    """
    try:
        inode = numbers.open(handle)
        try:
            value = os.getxattr(f"/proc/self/fd/{inode}", MARKER)
        finally:
            os.close(inode)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return marker_row(prefix, value) if value.startswith(prefix) else None
