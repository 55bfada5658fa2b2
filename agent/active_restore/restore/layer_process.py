"""Laying in a process of its own: it creates placeholders and catalogs them while the agent reads the snapshot.

Started before the source is opened, so that its own start costs no time. Batches go down as they are read; what was laid,
and what went wrong, comes up batch by batch.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec

from active_restore.catalog import Catalog
from active_restore.ebpf.spared import spared
from active_restore.errors import ActiveRestoreError
from active_restore.linux.process import collect_no_garbage, die_with_parent, name_thread
from active_restore.model import Kind, Node, Problem
from active_restore.placeholder import Laid, Layer
from active_restore.restore import frames

if TYPE_CHECKING:
    from collections.abc import Callable

BEGIN, BATCH, FINISH, LAID, FINISHED, FAILED = range(6)


class Entry(NamedTuple):
    """An entry of the walk: ``kept`` is in the target already, ``place`` is ``Source.order_key`` of its content."""

    row: int
    node: Node
    kept: bool
    place: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry]).decode


class Outcome(NamedTuple):
    """Who hears of what was laid: ``(row, inode number)`` pairs, problems, warnings."""

    add: Callable[[list[tuple[int, int]]], None]
    problem: Callable[[Problem], None]
    warn: Callable[[str], None]


class LayerProcess:
    """The agent's end. ``begin``, ``send`` any number of times, ``finish``; ``close`` always."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "active_restore.restore.layer_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._down: IO[bytes] = self._process.stdin
        self._up: IO[bytes] = self._process.stdout
        self._replies: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        # Replies are taken off the pipe at once: both ends writing into full pipes would wait for each other.
        self._listener = threading.Thread(target=self._listen, name="laid", daemon=True)
        self._listener.start()
        self._outcome: Outcome | None = None

    def _listen(self) -> None:
        while (frame := frames.read_frame(self._up)) is not None:
            self._replies.put(frame)
        self._replies.put(None)

    def begin(self, catalog: Path, staging: str, marker_prefix: bytes, outcome: Outcome, *, inode_numbers: bool) -> None:
        """Lay into this empty staging directory."""
        self._outcome = outcome
        self._write(BEGIN, str(catalog), staging, marker_prefix, inode_numbers)

    def send(self, batch: list[Entry]) -> None:
        """Lay these. Raises ``OSError`` for what an earlier batch met."""
        self._write(BATCH, _encode(batch))
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._replies.get_nowait())

    def finish(self) -> None:
        """Give directories their metadata and wait for the end. Raises ``OSError``."""
        self._write(FINISH)
        while self._take(self._replies.get()):
            pass

    def _write(self, *words: object) -> None:
        # A dead process shows in its replies.
        with contextlib.suppress(BrokenPipeError):
            frames.write_frame(self._down, *words)

    def _take(self, frame: list[Any] | None) -> bool:
        """Act on one reply; ``False`` for the last."""
        if frame is None:
            raise ActiveRestoreError("the laying process died", "see the log for what it said; begin again")
        kind, *words = frame
        if kind == FAILED:
            raise OSError(words[0], os.strerror(words[0]))
        assert self._outcome is not None
        inodes, problems, warnings = words
        self._outcome.add([(row, inode) for row, inode in inodes])
        for problem in problems:
            self._outcome.problem(Problem(*problem))
        for text in warnings:
            self._outcome.warn(text)
        return bool(kind == LAID)

    def close(self) -> None:
        """End it, whatever it does."""
        with contextlib.suppress(BrokenPipeError):
            self._down.close()
        self._process.kill()
        self._process.wait()
        self._listener.join()
        self._up.close()


class _Laying:
    """The other end."""

    def __init__(self, words: list[Any]) -> None:
        catalog, staging, prefix, inode_numbers = words
        self._catalog = Catalog(Path(catalog))
        self._warnings: list[str] = []
        self._layer = Layer(staging, prefix, self._warnings.append, inode_numbers=inode_numbers)

    def lay(self, batch: list[Entry]) -> list[Any]:
        """Create and catalog a batch; the words of the reply."""
        places = {entry.row: entry.place for entry in batch}
        laid: list[Laid] = []
        problems: list[Problem] = []
        for item in self._layer.lay((entry.row, entry.node) for entry in batch if not entry.kept):
            (problems if isinstance(item, Problem) else laid).append(item)  # type: ignore[arg-type]
        self._catalog.add_nodes(
            (entry.row, entry.node, entry.kept) for entry in batch if entry.kept or entry.node.kind is Kind.DIR
        )
        self._catalog.add_files((raw, inode, places[raw[0]]) for raw, inode in laid)
        for problem in problems:
            self._catalog.add_problem(problem)
        return [[(raw[0], inode) for raw, inode in laid], *self._told(problems)]

    def _told(self, problems: list[Problem]) -> list[Any]:
        warnings, self._warnings[:] = list(self._warnings), []
        return [[(problem.path, problem.errno, problem.detail) for problem in problems], warnings]

    def finish(self) -> list[Any]:
        """Directories at last."""
        self._layer.finish_directories(self._catalog.directories_backwards())
        self._catalog.close()
        return [[], *self._told([])]


def main() -> None:
    """Serve one laying, until the agent closes the stream."""
    die_with_parent(signal.SIGKILL)
    name_thread("ar-layer")
    collect_no_garbage()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # What it makes may get the number of a placeholder of a dead agent's that was deleted; it reads no content.
    with spared():
        _serve(sys.stdin.buffer, sys.stdout.buffer)


def _serve(down: IO[bytes], up: IO[bytes]) -> None:
    laying: _Laying | None = None
    try:
        while (frame := frames.read_frame(down)) is not None:
            kind, *words = frame
            if kind == BEGIN:
                laying = _Laying(words)
                continue
            assert laying is not None
            if kind == BATCH:
                frames.write_frame(up, LAID, *laying.lay(_decode(words[0])))
            else:
                frames.write_frame(up, FINISHED, *laying.finish())
    except OSError as error:
        with contextlib.suppress(OSError):
            frames.write_frame(up, FAILED, error.errno or 5)


if __name__ == "__main__":
    main()
