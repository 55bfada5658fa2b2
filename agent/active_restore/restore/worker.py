"""A worker process: fetch, verify and write batches of files for the background, away from the agent's interpreter lock.

Three threads: one reads frames, one fills, one makes durable. A file is claimed when its first piece is there, so a task
that wants a file of a running batch waits at most for the one file being written.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import traceback
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias

from active_restore.catalog import FileRow, State
from active_restore.errors import ContentError, SourceUnavailable
from active_restore.linux.files import own_description, sync_filesystem
from active_restore.linux.process import allow_many_files, die_with_parent, idle_io, name_thread
from active_restore.model import FileRef
from active_restore.placeholder import unmark
from active_restore.restore import frames
from active_restore.restore.board import Board
from active_restore.restore.pace import Pace, Stopped
from active_restore.restore.settle import forget_pages
from active_restore.restore.writer import Claim, Filling
from active_restore.source.open import attach

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.model import Piece
    from active_restore.source.base import Reader

_NICE = 10
_LINGER_SECONDS = 0.5
_SYNC_FILES = 2048
_SYNC_BYTES = 128 << 20
_FEW = 4
# While others use the machine: each sync makes them wait, and so does much that is written at once.
_MANNERLY_LINGER_SECONDS = 5.0
_MANNERLY_SYNC_BYTES = 32 << 20


class Upstream:
    """The stream to the agent, shared by threads."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, *words: object) -> None:
        """One frame. A dead agent ends us."""
        with self._lock:
            try:
                frames.write_frame(self._stream, *words)
            except OSError:
                os._exit(1)


class Syncer:
    """Makes what was filled durable, many files at a time, and keeps their inodes until the marker may go."""

    def __init__(self, mount_fd: int, upstream: Upstream, board: Board, number: int) -> None:
        # Nobody else hears for us what became of our writes: not another worker, and not the agent.
        self._mount = own_description(mount_fd)
        self._board = board
        self._number = number
        self._upstream = upstream
        self._changed = threading.Condition()
        self._fresh: list[tuple[int, int, int]] = []
        self._fresh_bytes = 0
        self._durable: dict[int, tuple[int, int]] = {}
        self._closing = False

    def add(self, filled: list[tuple[int, int, int]]) -> None:
        """These (row, descriptor, size) are filled."""
        with self._changed:
            self._fresh.extend(filled)
            self._fresh_bytes += sum(size for _, _, size in filled)
            self._changed.notify_all()

    def _enough(self) -> bool:
        sync_bytes = _MANNERLY_SYNC_BYTES if self._board.pace_bytes_per_s else _SYNC_BYTES
        return self._closing or len(self._fresh) >= _SYNC_FILES or self._fresh_bytes >= sync_bytes

    def run(self) -> None:
        """Until ``close`` and nothing is left."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fresh or self._closing)
                if not self._fresh:
                    os.close(self._mount)
                    return
                linger_s = _MANNERLY_LINGER_SECONDS if self._board.pace_bytes_per_s else _LINGER_SECONDS
                self._changed.wait_for(self._enough, linger_s)
                batch, self._fresh, self._fresh_bytes = self._fresh, [], 0
            try:
                self._sync([inode for _, inode, _ in batch])
            except OSError as error:
                # What was filled meanwhile is lost as well, perhaps; nobody may ask again and believe it (see ``settle``).
                self._upstream.send(frames.FAILED, error.errno or 5, error.strerror or "")
                os._exit(1)
            with self._changed:
                self._durable.update((row, (inode, size)) for row, inode, size in batch)
            self._upstream.send(frames.DURABLE, [row for row, *_ in batch])

    def _sync(self, inodes: list[int]) -> None:
        if len(inodes) <= _FEW:
            # Were the agent to ask about one of these after us, it would not be told: it must know (``settle``).
            self._board.add_syncing(self._number, 1)
            for inode in inodes:
                os.fdatasync(inode)
            self._board.add_syncing(self._number, -1)
        else:
            sync_filesystem(self._mount)

    def unmark(self, rows: list[int]) -> None:
        """The agent has noted that these are settled."""
        unmarked = []
        for row in rows:
            with self._changed:
                inode, size = self._durable.pop(row, (-1, 0))
            if inode >= 0:
                self._board.settled(self._number, size)
                # Over its quota a file system may refuse even that: the sweep at the end tries again.
                with contextlib.suppress(OSError):
                    unmark(inode)
                    unmarked.append(row)
                    if self._board.dropping and not self._board.urgent[row]:
                        forget_pages(inode)
                os.close(inode)
        self._upstream.send(frames.UNMARKED, rows, unmarked)

    def close(self) -> None:
        """Make the rest durable and end ``run``."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()


class Place(Protocol):
    """Where and how fast files are filled, and whose bytes they count as (``number``)."""

    @property
    def number(self) -> int: ...

    @property
    def mount_fd(self) -> int: ...

    @property
    def marker_prefix(self) -> bytes: ...

    @property
    def board(self) -> Board: ...

    @property
    def pace(self) -> Pace: ...


class Batch:
    """One job being filled: keeps at most one file claimed at a time."""

    def __init__(self, setup: Place, files: list[FileRow]) -> None:
        self._setup = setup
        self._files = files
        self._filling: Filling | None = None
        self._at = -1
        self._claim = Claim.GONE
        self.others: dict[int, tuple[int, int, int, str]] = {}
        self.filled: list[tuple[int, int, int]] = []

    def fill(self, reader: Reader) -> None:
        """Fill all; every file gets into ``filled`` (row, descriptor, size) or ``others``. Raises ``Stopped``."""
        try:
            for at, item in reader.read_many([file.ref for file in self._files]):
                self._take(at, item)
        except SourceUnavailable as error:
            self._abort()
            done = {row for row, _, _ in self.filled}
            for file in self._files:
                if file.row not in done:
                    self.others.setdefault(file.row, (file.row, frames.UNREACHABLE, 0, str(error)))
        except BaseException:
            self._abort()
            raise

    def _take(self, at: int, item: Piece | ContentError | None) -> None:
        file = self._files[at]
        if file.row in self.others:
            return
        try:
            if isinstance(item, ContentError):
                self._abort()
                self.others[file.row] = (file.row, frames.DAMAGED, item.errno, str(item))
                return
            if item is not None and self._setup.board.state[file.row] == State.LAID:
                # Before it is claimed: a task that wants the file takes it meanwhile, instead of waiting for our next look.
                self._setup.pace.wait(file.row, len(item.data))
            self._begin(at)
            if item is None:
                self._end(file)
            elif self._claim is Claim.OURS:
                self._write(file, item)
        except OSError as error:
            self._abort()
            self.others[file.row] = (file.row, frames.DISK, error.errno or 5, error.strerror or "")

    def _begin(self, at: int) -> None:
        if self._at != at:
            setup = self._setup
            self._filling = Filling(setup.mount_fd, self._files[at], setup.board, setup.marker_prefix)
            self._at = at
            self._claim = self._filling.claim()

    def _write(self, file: FileRow, piece: Piece) -> None:
        assert self._filling is not None
        self._filling.write(piece)
        self._setup.board.add_moved(self._setup.number, len(piece.data))

    def _end(self, file: FileRow) -> None:
        assert self._filling is not None
        if self._claim is Claim.OURS:
            self._filling.finish()
            self.filled.append((file.row, self._filling.keep_inode(), file.ref.size))
        else:
            stripped = self._claim is Claim.UNMARKED and self._setup.board.state[file.row] == State.LAID
            result = frames.GONE if self._claim is Claim.GONE or stripped else frames.SKIPPED
            self.others[file.row] = (file.row, result, 0, "")
        self._filling.close()
        self._filling, self._at = None, -1

    def _abort(self) -> None:
        if self._filling is not None:
            if self._claim is Claim.OURS:
                self._filling.abort()
                self._setup.board.settled(self._setup.number, self._filling.written)
            self._filling.close()
        self._filling, self._at = None, -1


class Setup:
    """What the first frame brings."""

    def __init__(self, words: dict[str, Any], upstream: Upstream) -> None:
        self.number: int = words["number"]
        self.mount_fd: int = words["mount_fd"]
        self.marker_prefix: bytes = words["marker_prefix"]
        self.board = Board(words["board_fd"], words["rows"])
        self.board.begin(self.number)
        self.source = attach(words["recipe"], words["fds"])
        self.pace = Pace(self.board, self.number, mannered=words.get("mannered", True))
        self.syncer = Syncer(self.mount_fd, upstream, self.board, self.number)


def _fill_jobs(setup: Setup, jobs: queue.SimpleQueue[tuple[int, list[FileRow]] | None], upstream: Upstream) -> None:
    idle_io()
    with contextlib.closing(setup.source.reader()) as reader:
        while (job := jobs.get()) is not None:
            number, files = job
            batch = Batch(setup, files)
            setup.board.note_working(setup.number, working=True)
            try:
                if not setup.board.stopping:
                    batch.fill(reader)
            except Stopped:
                # Every job gets its answer, this one and those behind it: the agent waits for them before it ends.
                pass
            finally:
                setup.board.note_working(setup.number, working=False)
                # In this order: the agent learns that a file is filled before it learns that it is durable.
                done = [row for row, _, _ in batch.filled]
                upstream.send(frames.FILLED, number, done, list(batch.others.values()))
                setup.syncer.add(batch.filled)
    setup.syncer.close()


def work(name: str, upstream: Upstream, task: Callable[[], None]) -> None:
    """Run one thread of the worker. What it cannot handle ends the process: the agent takes over what was filled."""
    name_thread(name)
    try:
        task()
    except OSError:
        # The agent will meet the same with what was filled here, and tell.
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


Begin: TypeAlias = "Callable[[dict[str, Any], Setup, Upstream], None]"


def serve(nice: int, begin: Begin | None = None) -> None:
    """Serve until the agent says stop or ends. ``begin`` is given the words of the first frame, to do more besides."""
    die_with_parent(signal.SIGKILL)
    name_thread("ar-worker")
    # A signal to the whole process group is for the agent, which ends us in good order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(nice)
    allow_many_files()
    upstream = Upstream(sys.stdout.buffer)
    first = frames.read_frame(sys.stdin.buffer)
    if first is None:
        return
    setup = Setup(first[1], upstream)
    jobs: queue.SimpleQueue[tuple[int, list[FileRow]] | None] = queue.SimpleQueue()
    filler = threading.Thread(target=work, args=("ar-fill", upstream, lambda: _fill_jobs(setup, jobs, upstream)))
    syncer = threading.Thread(target=work, args=("ar-sync", upstream, setup.syncer.run))
    filler.start()
    syncer.start()
    if begin is not None:
        begin(first[1], setup, upstream)
    while (frame := frames.read_frame(sys.stdin.buffer)) is not None:
        if frame[0] == frames.JOB:
            files = [FileRow(row, FileRef(*ref), handle) for row, *ref, handle in frame[2]]
            jobs.put((frame[1], files))
        elif frame[0] == frames.UNMARK:
            setup.syncer.unmark(frame[1])
        elif frame[0] == frames.STOP:
            jobs.put(None)
    if not filler.is_alive() and not syncer.is_alive():
        return
    # The agent is gone in the middle: markers stay where nothing was noted, so nothing is lost.
    os._exit(1)


if __name__ == "__main__":
    serve(_NICE)
