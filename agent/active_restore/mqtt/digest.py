"""What there is to publish now: the events of a restore, summed up so that the newest of each kind is all that waits.

Bounded whatever happens and however long no broker is there: one state, one progress, one report, and of the waits and refused
files only the first or longest few, with their number.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from msgspec import UNSET, UnsetType

import active_restore
from active_restore.control.names import plain
from active_restore.mqtt import payloads
from active_restore.mqtt.topics import RETAINED
from active_restore.restore.progress import Done, FaultServed, Planned, Progress, Ready, Refused, Status

if TYPE_CHECKING:
    from active_restore.errors import ActiveRestoreError
    from active_restore.mqtt.payloads import Outcome, Payload
    from active_restore.mqtt.topics import Kind
    from active_restore.restore.progress import Event, RangeCount, Waiting

_MAX_WAITING = 32
_MAX_SERVED = 16
_MAX_REFUSED = 100
_MAX_STEPS = 32
# Bytes of paths in one message: brokers have limits, and paths of 4,096 bytes exist.
_MAX_TEXT = 32 << 10


class Batch(NamedTuple):
    """Waits that ended and were not told yet: a heap of the longest as ``(waited_ms, number, event)``, and the sums of all."""

    longest: list[tuple[float, int, FaultServed]]
    waits: int = 0
    total_ms: float = 0.0

    def __add__(self, other: object) -> Batch:
        assert isinstance(other, Batch)
        longest = heapq.nlargest(_MAX_SERVED, [*self.longest, *other.longest])
        return Batch(longest[::-1], self.waits + other.waits, self.total_ms + other.total_ms)


class Digest:
    """Thread-safe. ``take`` gives what changed since it was last taken; ``give_back`` says that it did not arrive."""

    def __init__(self, node: str, target: str, *, accepts_commands: bool = False) -> None:
        self._lock = threading.Lock()
        self._node = node
        self._target = payloads.without_secrets(target)
        self._accepts_commands = accepts_commands
        self._restore_id = ""
        self._source = ""
        self._status: Status | None = None
        self._online = True
        self._phase = "planning"
        self._snapshot = ""
        self._timeline = [payloads.Step("planning", time.time())]
        self._ready_after_s: float | UnsetType = UNSET
        self._longest_ms = 0.0
        self._refused: list[payloads.RefusedFile] = []
        self._refused_room = _MAX_TEXT
        self._batch = Batch([])
        self._batch_number = 0
        self._told_waiting = False
        self._end: Done | None = None
        self._outcome: Outcome | None = None
        self._failure: payloads.Failure | UnsetType = UNSET
        self._dirty: set[Kind] = {"state"}

    def begin(self, restore_id: str, source: str) -> None:
        """The restore has a name now."""
        with self._lock:
            self._restore_id = restore_id
            self._source = payloads.without_secrets(source)
            self._dirty.add("state")

    def event(self, event: Event) -> bool:
        """Take one event; ``True`` where people should hear of it at once."""
        with self._lock:
            match event:
                case Progress():
                    return self._take_status(event.status)
                case FaultServed():
                    self._take_fault(event)
                    return False
                case Planned():
                    self._snapshot = event.snapshot
                    return self._enter("laying")
                case Ready():
                    self._ready_after_s = event.seconds
                    return self._enter("restoring")
                case Refused():
                    self._take_refused(event)
                    return False
                case Done():
                    self._end = event
                    self._status = self._status or self._status_at_end(event)
        return False

    def close(self, error: ActiveRestoreError | None) -> None:
        """The restore has ended, by ``Done`` or by an error: the last state and the report are due."""
        with self._lock:
            if error is not None:
                self._outcome = "interrupted" if error.code == "interrupted" else "failed"
                message, hint = payloads.without_secrets(str(error)), payloads.without_secrets(error.hint)
                self._failure = payloads.Failure(code=error.code, message=message, hint=hint)
                self._enter(self._outcome)
            elif self._end is not None:
                self._outcome = "partly" if self._end.refused else "done"
                self._enter("done")
            self._online = False
            self._dirty |= {"state", "progress"}
            if self._outcome is not None:
                self._dirty.add("report")

    def connected(self) -> None:
        """A broker that may know nothing of us, or that has told the others that we are lost."""
        with self._lock:
            self._dirty.update(kind for kind in RETAINED if kind != "report" or self._outcome is not None)

    def due(self) -> set[Kind]:
        """The kinds with news."""
        with self._lock:
            due = self._dirty.copy()
            if self._batch.waits or self._told_waiting or self._waiting():
                due.add("faults")
            return due

    def take(self, kind: Kind) -> tuple[Payload | None, Batch | None]:
        """The payload of a kind as of now (``None``: nothing to tell yet), and what of it no other will say again."""
        with self._lock:
            self._dirty.discard(kind)
            match kind:
                case "state":
                    return self._state(), None
                case "progress":
                    return self._progress(), None
                case "report":
                    return self._report(), None
                case "faults":
                    batch, self._batch = self._batch, Batch([])
                    return self._faults(batch), batch

    def give_back(self, kind: Kind, batch: Batch | None) -> None:
        """What was taken could not be published: it is due again, in whatever state it is by then."""
        with self._lock:
            if batch is not None:
                self._batch += batch
            elif kind != "faults":
                self._dirty.add(kind)

    def will(self) -> payloads.State:
        """What the broker tells the others when it hears nothing from us any more."""
        with self._lock:
            return self._state(online=False, phase="lost")

    def _status_at_end(self, end: Done) -> Status:
        """For a restore that was over before its first status."""
        return Status(
            "done", self._target, self._source, self._snapshot, "", end.seconds, end.files, end.bytes, end.files, end.bytes
        )

    def _take_status(self, status: Status) -> bool:
        before, self._status = self._status, status
        self._dirty.add("progress")
        changed = self._enter(status.phase) if self._outcome is None else False
        if before is None or (before.paused, before.limit_bytes_per_s, before.interceptor) != (
            status.paused,
            status.limit_bytes_per_s,
            status.interceptor,
        ):
            self._dirty.add("state")
            changed = True
        return changed

    def _take_fault(self, event: FaultServed) -> None:
        self._batch_number += 1
        entry = (event.waited_ms, self._batch_number, event)
        longest = self._batch.longest
        if len(longest) < _MAX_SERVED:
            heapq.heappush(longest, entry)
        else:
            heapq.heappushpop(longest, entry)
        self._longest_ms = max(self._longest_ms, event.waited_ms)
        self._batch = self._batch._replace(waits=self._batch.waits + 1, total_ms=self._batch.total_ms + event.waited_ms)

    def _take_refused(self, event: Refused) -> None:
        self._refused_room -= len(event.path) + len(event.detail)
        if self._refused_room > 0 and len(self._refused) < _MAX_REFUSED:
            self._refused.append(payloads.refused(event.path, event.errno, event.detail))

    def _enter(self, phase: str) -> bool:
        if phase == self._phase:
            return False
        self._phase = phase
        if len(self._timeline) < _MAX_STEPS:
            self._timeline.append(payloads.Step(phase, time.time()))
        self._dirty.add("state")
        return True

    def _state(self, *, online: bool | None = None, phase: str | None = None) -> payloads.State:
        status = self._status
        return payloads.State(
            node=self._node,
            time=time.time(),
            online=self._online if online is None else online,
            phase=phase or self._phase,
            target=self._target,
            source=self._source,
            snapshot=plain(self._snapshot or (status.snapshot if status else "")),
            restore_id=self._restore_id,
            interceptor=status.interceptor if status else "",
            agent=active_restore.__version__,
            paused=status.paused if status else False,
            limit_bytes_per_s=status.limit_bytes_per_s if status else 0,
            ready_after_s=self._ready_after_s,
            accepts_commands=self._accepts_commands,
            timeline=self._timeline.copy(),
        )

    def _progress(self) -> payloads.Progress | None:
        status, end = self._status, self._end
        if status is None:
            return None
        over = end is not None and not end.refused
        bytes_done = status.bytes_total if over else status.bytes_done
        files_done = status.files_total if over else status.files_done
        underway = 0 if over else status.bytes_there - bytes_done
        return payloads.Progress(
            node=self._node,
            time=time.time(),
            phase=self._phase,
            seconds=round(end.seconds if end else status.seconds, 3),
            percent=_percent(files_done, status.files_total, bytes_done + underway, status.bytes_total),
            files_total=status.files_total,
            files_done=files_done,
            bytes_total=status.bytes_total,
            bytes_done=bytes_done,
            bytes_underway=underway,
            rate_bytes_per_s=round(status.rate_bytes_per_s, 1) if self._online else 0.0,
            eta_s=UNSET if status.eta_s is None or not self._online else round(status.eta_s, 1),
            faults=end.faults if end else status.faults,
            refused=end.refused if end else status.refused,
            waiting=len(self._waiting()),
            longest_wait_ms=round(self._longest_ms, 3),
            paused=status.paused,
            limit_bytes_per_s=status.limit_bytes_per_s,
            source_unreachable_s=round(status.source_unreachable_s, 1),
            lanes={name: payloads.LaneSum(lane.files, lane.bytes) for name, lane in status.lanes.items()},
            ranges=_ranges(status.ranges),
        )

    def _waiting(self) -> tuple[Waiting, ...]:
        return self._status.waiting if self._status is not None and self._online else ()

    def _faults(self, batch: Batch) -> payloads.Faults:
        waiting = self._waiting()
        self._told_waiting = bool(waiting)
        longest = sorted(waiting, key=lambda wait: -wait.waited_ms)[:_MAX_WAITING]
        told = [payloads.wait(w.path, w.task.comm, w.task.tid, w.task.tgid, w.waited_ms) for w in longest]
        served = [
            payloads.wait(fault.path, fault.task.comm, fault.task.tid, fault.task.tgid, waited_ms)
            for waited_ms, _, fault in sorted(batch.longest, reverse=True)
        ]
        return payloads.Faults(
            node=self._node,
            time=time.time(),
            waiting=_that_fit(told),
            waiting_total=len(waiting),
            served=_that_fit(served),
            served_total=batch.waits,
            served_ms=round(batch.total_ms, 3),
            faults_total=self._batch_number,
        )

    def _report(self) -> payloads.Report | None:
        if self._outcome is None:
            return None
        state, end, status = self._state(), self._end, self._status
        return payloads.Report(
            node=self._node,
            time=state.time,
            outcome=self._outcome,
            target=state.target,
            source=state.source,
            snapshot=state.snapshot,
            restore_id=state.restore_id,
            files=end.files if end else status.files_done if status else 0,
            bytes=end.bytes if end else status.bytes_done if status else 0,
            faults=self._batch_number,
            refused=end.refused if end else len(self._refused),
            seconds=round(end.seconds if end else status.seconds if status else 0.0, 3),
            ready_after_s=self._ready_after_s,
            longest_wait_ms=round(self._longest_ms, 3),
            refused_files=self._refused.copy(),
            error=self._failure,
            timeline=state.timeline,
        )


def _that_fit(waits: list[payloads.Wait]) -> list[payloads.Wait]:
    """The first of them whose paths are not too long together."""
    sizes = itertools.accumulate(len(wait.path) for wait in waits)
    return [wait for wait, size in zip(waits, sizes, strict=True) if size <= _MAX_TEXT]


def _ranges(count: RangeCount) -> payloads.RangeSum | UnsetType:
    """Nothing where no file is by range."""
    if not count.files and not count.bytes_wanted:
        return UNSET
    return payloads.RangeSum(count.files, count.bytes_total, count.bytes_present, count.bytes_wanted)


def _percent(files_done: int, files_total: int, bytes_done: int, bytes_total: int) -> float:
    """Rounded down to tenths: 100 only when no file and no byte is left."""
    if files_total == 0:
        return 0.0
    done, total = (bytes_done, bytes_total) if bytes_total else (files_done, files_total)
    tenths = min(done * 1000 // total, 1000)
    return 99.9 if tenths == 1000 and files_done < files_total else tenths / 10
