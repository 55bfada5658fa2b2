"""While no agent lives, the keeper traces whoever is stopped because its mapping shows more than is there (see ``windows``).

It fills nothing and lets nobody go: the next agent does. It only keeps a stranger's SIGCONT from doing that.
"""

from __future__ import annotations

import contextlib
import select
import threading

from active_restore.ebpf.growth import Growth
from active_restore.intercept.tracer import LOOK_MS, Bell, Tracer, is_same
from active_restore.linux import bpffs
from active_restore.linux.process import hurry, name_thread


class Warden:
    """``begin`` when the agent is gone, ``end`` before the next one comes: a thread has one tracer."""

    def __init__(self, restore_id: str) -> None:
        self._pins = bpffs.windows(restore_id)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Where the programs are there."""
        if self._thread is None and self._pins.is_dir():
            self._ending.clear()
            self._thread = threading.Thread(target=self._run, name="windows", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Who is traced stays stopped."""
        if self._thread is not None:
            self._ending.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        name_thread("windows")
        with contextlib.suppress(OSError):
            hurry()
        # Programs that are just being ended hold nobody.
        with contextlib.suppress(OSError), contextlib.closing(Growth(self._pins)) as found:
            bell, tracer, known = Bell(found.ring), Tracer(), set()
            poll = select.poll()
            poll.register(bell.fd, select.POLLIN)
            while not self._ending.is_set():
                for grown in found.grown():
                    # Again and again: the agent that died may be its tracer for a moment still.
                    if grown not in known and is_same(grown) and tracer.take(grown.tid, grown.tgid):
                        known.add(grown)
                tracer.look()
                poll.poll(LOOK_MS)
                bell.empty()
            tracer.leave()
