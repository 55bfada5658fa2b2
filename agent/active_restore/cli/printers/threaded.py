"""A reporter that never waits: events go into a bounded queue, a thread of its own prints them."""

from __future__ import annotations

import collections
import contextlib
import threading
from typing import TYPE_CHECKING, Protocol

from active_restore.restore.progress import Done, FaultServed, Notice, Planned, Progress, Ready

if TYPE_CHECKING:
    from types import TracebackType

    from active_restore.restore.progress import Event

_MAX_EVENTS = 20_000
_ALWAYS_KEPT = (Planned, Ready, Done)
# Faults come by the thousand, and every turn of the printer takes the interpreter from the threads that serve them.
_GATHER_S = 0.1


class Printer(Protocol):
    """Called by one thread only. ``OSError`` from either means that nobody reads any more."""

    period_s: float
    """How often ``tick`` is wanted."""

    def show(self, event: Event) -> None:
        """One event; of several statuses in a row only the newest comes here."""

    def tick(self) -> None:
        """Time went by."""

    def close(self) -> None:
        """Nothing follows."""


class ThreadedReporter:
    """``with ThreadedReporter(printer) as reporter:`` prints until the block is left; then everything queued is out.

    When the printer cannot keep up, events are dropped and their number is told; the milestones (``Planned``, ``Ready``,
    ``Done``) never are.
    """

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._changed = threading.Condition()
        self._events: collections.deque[Event] = collections.deque()
        self._status: Progress | None = None
        self._dropped = 0
        self._pressing = False
        self._closing = False
        self._deaf = False
        self._thread = threading.Thread(target=self._run, name="printer", daemon=True)

    def __enter__(self) -> ThreadedReporter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        # A reader that stands still is waited for like by any other program; the restore is over, and Ctrl-C ends it.
        with contextlib.suppress(KeyboardInterrupt):
            self._thread.join()

    def event(self, event: Event) -> None:
        """Take one event; safe from any thread."""
        with self._changed:
            if self._deaf:
                return
            if isinstance(event, Progress):
                self._status = event
            elif len(self._events) < _MAX_EVENTS or isinstance(event, _ALWAYS_KEPT):
                self._events.append(event)
            else:
                self._dropped += 1
            if not isinstance(event, FaultServed):
                self._pressing = True
                self._changed.notify()
            elif len(self._events) == 1:
                self._changed.notify()

    def _run(self) -> None:
        try:
            while True:
                events, closing = self._wait()
                for event in events:
                    self._printer.show(event)
                if closing:
                    self._printer.close()
                    return
                self._printer.tick()
        except OSError:
            pass  # a closed pipe, a terminal that hung up: the restore goes on in silence
        finally:
            with self._changed:
                self._deaf = True
                self._events.clear()

    def _wait(self) -> tuple[list[Event], bool]:
        """What is to be printed next, in order, and whether that was all."""
        with self._changed:
            if not (self._events or self._status or self._closing):
                self._changed.wait(self._printer.period_s)
            if self._events:
                self._changed.wait_for(lambda: self._pressing or self._closing, _GATHER_S)
            self._pressing = False
            events: list[Event] = list(self._events)
            self._events.clear()
            if self._status is not None:
                # A status is older than the end that may have come after it.
                events.insert(len(events) - 1 if events and isinstance(events[-1], Done) else len(events), self._status)
                self._status = None
            if self._dropped:
                events.append(Notice(f"{self._dropped} events were left out: the reader of this output is too slow"))
                self._dropped = 0
            return events, self._closing
