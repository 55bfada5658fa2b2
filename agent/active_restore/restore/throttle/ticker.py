"""The thread that looks, decides and tells the workers, five times a second; it also keeps the user's limit to its hours."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from active_restore.ebpf.blocks import BlockWatch
from active_restore.errors import ActiveRestoreError
from active_restore.linux.disks import disks_below
from active_restore.restore.progress import Throttled
from active_restore.restore.throttle.control import State, step
from active_restore.restore.throttle.sensor import Sensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from active_restore.restore.board import Board
    from active_restore.restore.limits import Limits
    from active_restore.restore.throttle.load import Decision

_log = logging.getLogger(__name__)
PERIOD_S = 0.2
# Compiling takes half a second of a processor: only when it may matter. Who hides behind our own reads is found later.
_COMPILE_AFTER_S = 15.0
_SUSPICIOUS_LOOKS = 5
_NICE = 15
_PATIENCE_S = 1.0


class Counters(NamedTuple):
    """What the ticker asks of the lanes: process ids of the workers, faults served so far, tasks that wait now."""

    workers: Callable[[], list[int]]
    faults: Callable[[], int]
    waiting: Callable[[], int]


class Ticker:
    """``with Ticker(...):`` keeps manners until the block is left.

    ``places`` are paths on the disks that we use; ``yields``: whether others come first, or only the limit is to be kept.
    """

    def __init__(self, board: Board, places: Iterable[str], counters: Counters, limits: Limits, *, yields: bool) -> None:
        self.limits = limits
        self._board = board
        self._places = tuple(places)
        self._counters = counters
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run if yields else self._keep_hours, name="throttle")
        # Not waited for long in the end: its child dies with it, and what it loaded lives in our descriptors alone.
        self._loader = threading.Thread(target=self._load, name="throttle-load", daemon=True)
        self._loaded: BlockWatch | None = None
        self._told = Throttled()

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._set_free()

    def status(self) -> Throttled:
        """What was decided last."""
        return self._told

    def _set_free(self) -> None:
        """Nobody decides any more: whoever still works does it freely."""
        self._board.pace_bytes_per_s = 0
        self._board.concurrency = 0
        self._board.meek = False
        self._told = Throttled()

    def _run(self) -> None:
        try:
            self._keep_manners()
        except Exception:
            # A restore without manners is better than one that stays slow for ever.
            _log.exception("the background goes on without manners")
            self._set_free()
            self._keep_hours()

    def _keep_hours(self) -> None:
        while not self._ending.wait(PERIOD_S):
            self._board.rate_bytes_per_s = self.limits.now()

    def _keep_manners(self) -> None:
        disks = {disk for place in self._places for disk in disks_below(place)}
        started = time.monotonic()
        with contextlib.closing(Sensor(disks, self._counters.workers)) as sensor:
            state, suspicious = State(), 0
            while not self._ending.wait(PERIOD_S):
                self._board.rate_bytes_per_s = self.limits.now()
                load = sensor.look(self._board.moved(), self._counters.faults(), self._counters.waiting())
                state, decision = step(state, load, self._board.workers)
                self._tell(decision, sensor.by)
                suspicious = suspicious + 1 if sensor.suspicious else 0
                # Also to be sure that it is somebody else to whom we yield.
                certain = decision.reason == "disk" or suspicious >= _SUSPICIOUS_LOOKS
                if certain or time.monotonic() - started > _COMPILE_AFTER_S:
                    self._look_closer(sensor)
        if self._loader.ident:
            self._loader.join(_PATIENCE_S)
        if self._loaded is not None:
            self._loaded.close()

    def _tell(self, decision: Decision, by: str) -> None:
        self._board.pace_bytes_per_s = decision.rate_bytes_per_s
        self._board.concurrency = decision.workers
        self._board.dropping = decision.drop
        self._board.meek = decision.meek
        self._told = Throttled(decision.reason, decision.rate_bytes_per_s, decision.workers, by)

    def _look_closer(self, sensor: Sensor) -> None:
        """Load the block programs, once; take them over when they are there."""
        if not self._loader.ident:
            self._loader.start()
        elif self._loaded is not None:
            blocks, self._loaded = self._loaded, None
            sensor.watch(blocks)

    def _load(self) -> None:
        """Where it does not work, counts of the disks must do; ``doctor`` says why."""
        with contextlib.suppress(ActiveRestoreError, OSError, subprocess.SubprocessError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
            self._loaded = BlockWatch("throttle")
