"""Events from a BPF ring buffer, read with libbpf (which bcc depends on), because its memory order is not for Python.

Not guaranteed: an event for every wait. The ring may be full; the map of waiters is the truth.
"""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache
from typing import TYPE_CHECKING

from active_restore.errors import CapabilityMissing

if TYPE_CHECKING:
    from active_restore.ebpf.maps import Map

_Sample = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@cache
def _libbpf() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise CapabilityMissing("libbpf.so.1 is missing.", "Install the package libbpf1.") from None
    library.ring_buffer__new.restype = ctypes.c_void_p
    library.ring_buffer__new.argtypes = [ctypes.c_int, _Sample, ctypes.c_void_p, ctypes.c_void_p]
    library.ring_buffer__poll.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.ring_buffer__free.argtypes = [ctypes.c_void_p]
    return library


class Ring:
    """The reading end of a ring buffer; one thread at a time. The map stays with its owner."""

    def __init__(self, events: Map) -> None:
        self._events: deque[bytes] = deque()
        # Kept: libbpf calls it as long as the ring lives.
        self._sample = _Sample(self._keep)
        self._ring = _libbpf().ring_buffer__new(events.fd, self._sample, None, None)
        if not self._ring:
            raise OSError(ctypes.get_errno(), "cannot read the ring buffer", events.name)

    def read(self, timeout_ms: int) -> list[bytes]:
        """All events that are there, after waiting up to ``timeout_ms`` for the first."""
        _libbpf().ring_buffer__poll(self._ring, timeout_ms)
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None:
        """Unmap the ring."""
        _libbpf().ring_buffer__free(self._ring)

    def _keep(self, _context: int | None, data: int | None, length: int) -> int:
        self._events.append(ctypes.string_at(data or 0, length))
        return 0
