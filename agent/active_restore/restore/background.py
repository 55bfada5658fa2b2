"""The background lane: worker processes that fill everything in the order in which the source is read cheapest.

One thread of the agent serves one worker: it hands out batches, notes what became durable, and only then lets the
worker take the markers away. A worker that dies is replaced; what it had filled is settled by the agent.
"""

from __future__ import annotations

import contextlib
import errno
import subprocess
import sys
import threading
from array import array
from collections import deque
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from active_restore.catalog import State
from active_restore.linux.process import rouse
from active_restore.model import Lane
from active_restore.placeholder import open_inode
from active_restore.restore import frames
from active_restore.restore.progress import Notice
from active_restore.restore.settle import Filled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from active_restore.catalog import RawFile
    from active_restore.restore.shop import Workshop
    from active_restore.source.base import Handover

_BATCH_FILES = 256
_BATCH_BYTES = 16 << 20
_JOBS_AHEAD = 2
# With more than this in hand a worker has nothing to wait for, but another one may.
_MUCH_IN_HAND_BYTES = 2 * _BATCH_BYTES
_RETRY_SECONDS = 5.0
# Between the deaths of a worker that accomplished nothing: the background must neither give up nor eat the machine.
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 30.0


class Hooks(NamedTuple):
    """What the background tells the agent: rows that are no placeholders any more, and what the backup does not have."""

    settled: Callable[[Sequence[int]], None]
    refused: Callable[[int, bytes, int, str], None]


class Role(NamedTuple):
    """What a worker process runs; ``words`` go into its first frame, ``fds`` are inherited."""

    module: str
    words: dict[str, Any]
    fds: tuple[int, ...]


_WORKER = Role("active_restore.restore.worker", {}, ())


class WorkerProcess:
    """One worker and its streams."""

    def __init__(self, number: int, shop: Workshop, handover: Handover, role: Role = _WORKER) -> None:
        self._sending = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", role.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[shop.mount_fd, shop.board.fd, *handover.fds, *role.fds],
            cwd="/",
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._down: IO[bytes] = self._process.stdin
        self._up: IO[bytes] = self._process.stdout
        setup = {
            "number": number,
            "mount_fd": shop.mount_fd,
            "marker_prefix": shop.marker_prefix,
            "board_fd": shop.board.fd,
            "rows": shop.board.rows,
            "recipe": handover.recipe,
            "fds": list(handover.fds),
            **role.words,
        }
        self.send(frames.SETUP, setup)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, *words: object) -> None:
        """A frame down; a dead worker shows in ``receive``."""
        with self._sending, contextlib.suppress(BrokenPipeError):
            frames.write_frame(self._down, *words)

    def receive(self) -> list[Any] | None:
        """A frame up; ``None`` when the worker has ended."""
        return frames.read_frame(self._up)

    def close(self) -> None:
        """End it (at the end of its input) and reap it."""
        with contextlib.suppress(BrokenPipeError):
            self._down.close()
        self._process.wait()
        self._up.close()


class Queue:
    """Rows that nobody has asked for yet, in order, with promoted and returned rows before all others."""

    def __init__(self, shop: Workshop, batch_files: int = _BATCH_FILES, batch_bytes: int = _BATCH_BYTES) -> None:
        self._shop = shop
        self._batch_files = batch_files
        self._batch_bytes = batch_bytes
        self._lock = threading.Lock()
        self._rows = array("I")
        self._next = 0
        self._first: deque[int] = deque()

    def load(self, rows: array[int]) -> None:
        """The background order."""
        with self._lock:
            self._rows, self._next = rows, 0

    def append(self, rows: Sequence[int]) -> None:
        """These behind everything else."""
        with self._lock:
            self._rows.extend(rows)

    def promote(self, rows: Sequence[int]) -> None:
        """These before everything else."""
        with self._lock:
            self._first.extend(rows)

    def put_back(self, rows: Sequence[int]) -> None:
        """These could not be done; again, later in line than what was promoted."""
        self.promote(rows)

    def __bool__(self) -> bool:
        return bool(self._first) or self._next < len(self._rows)

    def batch(self) -> list[RawFile]:
        """The next files to fill; empty when nothing is left now. What is more than a batch of bytes waits for the next."""
        # In one go: another worker that finds nothing in the middle of it would rest for a while.
        with self._lock:
            rows: list[int] = []
            while len(rows) < self._batch_files and (row := self._pop()) is not None:
                if self._shop.board.state[row] == State.LAID:
                    rows.append(row)
            # Once each: what was promoted comes by again in its turn.
            files = self._shop.catalog.files(list(dict.fromkeys(rows))) if rows else []
            total = 0
            for position, (_, _, size, *_) in enumerate(files):
                if total >= self._batch_bytes:
                    self._first.extendleft(row for row, *_ in reversed(files[position:]))
                    return files[:position]
                total += size
            return files

    def _pop(self) -> int | None:
        if self._first:
            return self._first.popleft()
        if self._next < len(self._rows):
            self._next += 1
            return self._rows[self._next - 1]
        return None


class Background:
    """``start`` makes the workers before the file system is guarded; ``run`` serves worker ``number`` until all is done."""

    def __init__(self, shop: Workshop, handover: Callable[[], Handover], hooks: Hooks, workers: int) -> None:
        self.queue = Queue(shop)
        self._shop = shop
        self._handover = handover
        self._hooks = hooks
        self._workers = [WorkerProcess(number, shop, handover()) for number in range(workers)]
        self._wake = threading.Condition()
        self._idle = 0
        self._finished = False
        shop.board.workers = workers

    @property
    def count(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    def pids(self) -> list[int]:
        """Process ids of the workers now."""
        return [worker.pid for worker in self._workers]

    def run(self, number: int) -> None:
        """Serve one worker; a new one takes the place of one that dies, after growing pauses where none gets anything done."""
        pause = _FIRST_PAUSE_S
        try:
            while not self._serve(session := Session(self._workers[number], self._shop, self._hooks, self.queue)):
                pause = _FIRST_PAUSE_S if session.accomplished else min(2 * pause, _LAST_PAUSE_S)
                self._shop.reporter.event(Notice("a worker process died and is replaced"))
                with self._wake:
                    if self._wake.wait_for(lambda: self._finished or self._shop.board.stopping, pause):
                        return
                self._workers[number] = WorkerProcess(number, self._shop, self._handover())
        except OSError as error:
            # The disk of the state.
            self._shop.settler.fail(error)
        finally:
            self._workers[number].close()

    def _serve(self, session: Session) -> bool:
        """``False`` when the worker died before its work was done."""
        try:
            while not (self._shop.board.stopping or (self._finished and not session.busy)):
                if not session.feed() and not session.busy:
                    self._rest(session)
                elif not session.hear():
                    return False
            return session.finish()
        finally:
            session.end()

    def _rest(self, session: Session) -> None:
        """Nothing to hand out: sleep until there is, or a while after trouble."""
        with self._wake:
            self._wake.wait_for(lambda: self._finished or self.queue or self._shop.board.stopping, _RETRY_SECONDS)
        session.forgive()

    def rouse(self) -> None:
        """Let workers go on that somebody has stopped: one may hold the very file that a task waits for."""
        for worker in self._workers:
            rouse(worker.pid)

    def promote(self, rows: Sequence[int]) -> None:
        """Fill these next."""
        self.queue.promote(rows)
        self.wake()

    def wake(self) -> None:
        """Something changed."""
        with self._wake:
            self._wake.notify_all()

    def finish(self) -> None:
        """No more work will come: workers end when they have nothing in hand."""
        with self._wake:
            self._finished = True
            self._wake.notify_all()


class Session:
    """The conversation with one living worker."""

    def __init__(self, worker: WorkerProcess, shop: Workshop, hooks: Hooks, queue: Queue, lane: Lane = Lane.BACKGROUND) -> None:
        self._lane = lane
        self._worker = worker
        self._shop = shop
        self._hooks = hooks
        self._queue = queue
        self._jobs: dict[int, dict[int, int]] = {}
        self._undurable: dict[int, int] = {}
        self._unmarking = 0
        self._number = 0
        self._troubled: list[int] = []
        self.accomplished = False

    @property
    def busy(self) -> bool:
        """Whether the worker has something in hand."""
        return bool(self._jobs or self._undurable or self._unmarking)

    def feed(self) -> bool:
        """Hand out batches; ``False`` where none could be."""
        fed = False
        while self._has_room() and not self._troubled:
            files = self._queue.batch()
            if not files:
                break
            self._number += 1
            self._jobs[self._number] = {row: size for row, _, size, *_ in files}
            self._worker.send(frames.JOB, self._number, files)
            fed = True
        return fed

    def _has_room(self) -> bool:
        in_hand = sum(sum(sizes.values()) for sizes in self._jobs.values())
        return len(self._jobs) < _JOBS_AHEAD and in_hand < _MUCH_IN_HAND_BYTES

    def forgive(self) -> None:
        """After a pause: what met trouble is tried again."""
        self._queue.put_back(self._troubled)
        self._troubled = []

    def hear(self) -> bool:
        """Act on one frame; ``False`` when the worker is dead."""
        frame = self._worker.receive()
        if frame is None:
            return False
        kind, *words = frame
        if kind == frames.FILLED:
            self._filled(*words)
        elif kind == frames.DURABLE:
            self._durable(words[0])
        elif kind == frames.UNMARKED:
            self._unmarking -= 1
            rows, unmarked = words
            self._shop.board.note_marked(unmarked, marked=False)
            self._hooks.settled(rows)
        elif kind == frames.FAILED:
            self._failed(OSError(*words))
        else:
            self._other(kind, words)
        return True

    def _failed(self, error: OSError) -> None:
        # A file system that is full, or over its quota, may refuse to sync what it keeps. The settler asks again, by a
        # description of its own that has not been told yet: where something was lost, it hears of that, too.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            self._shop.settler.fail(error)

    def _other(self, kind: int, words: list[Any]) -> None:
        """A frame that ordinary workers do not send."""

    def _filled(self, number: int, filled: list[int], others: list[list[Any]]) -> None:
        sizes = self._jobs.pop(number)
        self.accomplished = True
        done = {row: sizes.pop(row) for row in filled}
        self._undurable |= done
        for row, result, code, detail in others:
            size = sizes.pop(row)
            if result == frames.GONE:
                self._gone(row, size)
            elif result == frames.DAMAGED:
                self._hooks.refused(row, self._shop.catalog.path(row), code, detail)
            elif result in (frames.UNREACHABLE, frames.DISK):
                self._trouble(row, code, detail)
        # A stopped worker leaves files without a result: they are still placeholders.
        self._queue.put_back(list(sizes))
        self._shop.tally.filled(self._lane, len(done), sum(done.values()))

    def _trouble(self, row: int, code: int, detail: str) -> None:
        if not self._troubled:
            what = "the disk is full" if code in (errno.ENOSPC, errno.EDQUOT) else detail
            self._shop.reporter.event(Notice(f"the background waits {_RETRY_SECONDS:.0f} s: {what}"))
        self._troubled.append(row)

    def _gone(self, row: int, size: int) -> None:
        """The user deleted it: nothing to restore any more."""
        self._shop.board.state[row] = State.GONE
        self._shop.catalog.set_states([row], State.GONE)
        self._hooks.settled([row])
        self._shop.tally.done([(row, size)])

    def _durable(self, rows: list[int]) -> None:
        self._shop.catalog.set_states(rows, State.SETTLED)
        self._shop.board.conclude(rows, State.SETTLED)
        self._worker.send(frames.UNMARK, rows)
        self._unmarking += 1
        self._shop.tally.done([(row, self._undurable.pop(row, 0)) for row in rows])

    def finish(self) -> bool:
        """Let the worker end; ``False`` where it died with work in hand."""
        self._worker.send(frames.STOP)
        while self.busy:
            if not self.hear():
                return False
        return True

    def end(self) -> None:
        """The worker is dead or ends: nothing that it had in hand is forgotten."""
        self._worker.close()
        for sizes in self._jobs.values():
            self._queue.put_back([row for row in sizes if self._shop.board.state[row] == State.LAID])
            for row, size in sizes.items():
                if self._shop.board.state[row] == State.FILLED:
                    self._adopt(row, size)
        for row, size in self._undurable.items():
            self._adopt(row, size)
        self.forgive()

    def _adopt(self, row: int, size: int) -> None:
        """Filled by a worker that died before it was durable: settle it here."""
        file = self._shop.catalog.file(row)
        if file is None:
            return
        inode = open_inode(self._shop.mount_fd, file.handle)
        if inode is not None:
            self._shop.settler.add(Filled(row, inode, size), adopted=True)
        else:
            self._gone(row, size)
