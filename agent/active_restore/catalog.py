"""The catalog: SQLite state of one restore, in the state directory. What it says survives a power cut.

Rows are numbered in the order of the snapshot's walk; a row is what a marker points to. Content and handles stay on
disk and are read per file; memory holds one state byte a row (``restore.board``).

Not kept here: whether a placeholder is still unrestored. The marker on the inode says that; a row that is SETTLED here
while its marker is still there only needs the marker removed, unless the disk was put back to an older state: so each row
knows the number under which it was settled, and the target the last such number (``restore.epoch``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import sqlite3
import threading
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from active_restore.errors import ActiveRestoreError
from active_restore.model import FileRef, Node, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS plan(entries INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS node(row INTEGER PRIMARY KEY, node BLOB NOT NULL, kept INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS file(
    row INTEGER PRIMARY KEY, path BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    content BLOB NOT NULL, handle BLOB NOT NULL, inode INTEGER NOT NULL, place INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS progress(row INTEGER PRIMARY KEY, state INTEGER NOT NULL, epoch INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS note(name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS problem(path BLOB NOT NULL, errno INTEGER NOT NULL, detail TEXT NOT NULL);
"""


class State(IntEnum):
    """Of a file. Stored (but not LAID): only append. Two live in memory only: ``FILLED`` (complete but not durable) and
    ``RANGED`` (LAID, but filled page by page: see ``restore.ranges``).
    """

    LAID = 0
    FILLED = 1
    SETTLED = 2
    GONE = 3
    REFUSED = 4
    RANGED = 5


class FileRow(NamedTuple):
    """A placeholder: what to restore (``ref``) and where (``handle``)."""

    row: int
    ref: FileRef
    handle: bytes


# Row, path, size, mtime_ns, content, handle: as it lies in the table and goes to workers, no object in between.
RawFile = tuple[int, bytes, int, int, bytes, bytes]


class Epoch(NamedTuple):
    """How far a restore has come: ``life`` is a random word of the agent, ``number`` grows with what is settled."""

    life: bytes
    number: int


class Totals(NamedTuple):
    """What there is to restore. ``bytes`` counts each inode once."""

    files: int
    bytes: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Node).decode


class Catalog:
    """One database. Writers share one connection and a lock; each reading thread has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.file_path = path
        self._lock = threading.Lock()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._epoch = Epoch(b"", 0)
        self._tell: Callable[[Epoch], None] = _tell_nobody
        try:
            self._db = self._connect()
            self._db.executescript(_SCHEMA)
            if "epoch" not in (column[1] for column in self._db.execute("PRAGMA table_info(progress)")):
                # An earlier version began this restore.
                self._db.execute("ALTER TABLE progress ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0")
            notes = dict(self._db.execute("SELECT name,value FROM note"))
            self._epoch = Epoch(notes.get("life", b""), notes.get("number", 0))
            self.rebuilt = "rebuilt" in notes
        except sqlite3.DatabaseError as error:
            raise ActiveRestoreError(
                f"the state {path} cannot be read ({error})",
                "move it away and run resume: state is rebuilt from the markers",
            ) from error

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.file_path, isolation_level=None, check_same_thread=False, timeout=30)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        return db

    def _reader(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = self._connect()
            with self._lock:
                self._readers.append(db)
        return db

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for db in (*self._readers, self._db):
                db.close()
            self._readers.clear()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Raises ``OSError`` where its disk fails."""
        with self._lock:
            try:
                self._db.execute("BEGIN")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                # Where the disk failed it may have been rolled back already.
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise OSError(errno.EIO, f"the state cannot be written: {error}") from error
                raise

    def clear(self) -> None:
        """Forget an earlier plan."""
        with self._transaction() as db:
            for table in ("plan", "node", "file", "progress", "problem"):
                db.execute(f"DELETE FROM {table}")
            db.execute("DELETE FROM note WHERE name='rebuilt'")
        self.rebuilt = False

    def note_rebuilt(self) -> None:
        """It was made of the markers that were left: rows that were settled by then are not here."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO note VALUES('rebuilt',1)")
        self.rebuilt = True

    def add_nodes(self, nodes: Iterable[tuple[int, Node, bool]]) -> None:
        """Directories, and ``kept`` files that are in the target already: what needs its metadata at the end."""
        with self._transaction() as db:
            db.executemany("INSERT INTO node VALUES(?,?,?)", ((row, _encode(node), kept) for row, node, kept in nodes))

    def end_plan(self, entries: int) -> None:
        """The walk is over: rows count from 0 to ``entries`` - 1."""
        with self._transaction() as db:
            db.execute("INSERT INTO plan VALUES(?)", (entries,))

    def kept(self) -> Iterator[Node]:
        """What is in the target already."""
        for (node,) in self._reader().execute("SELECT node FROM node WHERE kept ORDER BY row"):
            yield _decode(node)

    def root(self) -> Node | None:
        """The node of the target itself."""
        found = self._reader().execute("SELECT node FROM node WHERE row=0").fetchone()
        node = _decode(found[0]) if found else None
        return node if node is not None and not node.path else None

    def directories_backwards(self) -> Iterator[Node]:
        """Directories from the end of the plan: children before their parents."""
        for (node,) in self._reader().execute("SELECT node FROM node WHERE NOT kept ORDER BY row DESC"):
            yield _decode(node)

    def problems(self) -> list[Problem]:
        """What of the snapshot could not be planned or laid."""
        return [Problem(*found) for found in self._reader().execute("SELECT path,errno,detail FROM problem")]

    def add_problem(self, problem: Problem) -> None:
        """Something of the snapshot that cannot be restored."""
        with self._transaction() as db:
            db.execute("INSERT INTO problem VALUES(?,?,?)", (problem.path, problem.errno, problem.detail))

    def row_count(self) -> int:
        """How many rows there are (rows count from 0)."""
        found = self._reader().execute("SELECT entries FROM plan").fetchone()
        return int(found[0]) if found else 0

    def add_files(self, files: Iterable[tuple[RawFile, int, int]]) -> None:
        """Placeholders that were laid: ``(file, inode number, place)``; place in the source as ``Source.order_key`` says."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO file VALUES(?,?,?,?,?,?,?,?)",
                ((*raw, inode, place) for raw, inode, place in files),
            )

    def inodes(self) -> Iterator[tuple[int, int]]:
        """(row, inode number) of every placeholder that may be unrestored."""
        query = "SELECT row,inode FROM file LEFT JOIN progress USING(row) WHERE coalesce(state,?) IN (?,?)"
        yield from self._reader().execute(query, (int(State.LAID), int(State.LAID), int(State.REFUSED)))

    def totals(self) -> Totals:
        """How much there is to restore."""
        files, size = self._reader().execute("SELECT count(*), coalesce(sum(size),0) FROM file").fetchone()
        return Totals(int(files), int(size))

    def file(self, row: int) -> FileRow | None:
        """A placeholder by its row."""
        query = "SELECT path,size,mtime_ns,content,handle FROM file WHERE row=?"
        found = self._reader().execute(query, (row,)).fetchone()
        return None if found is None else FileRow(row, FileRef(*found[:4]), found[4])

    def files(self, rows: Sequence[int]) -> list[RawFile]:
        """Placeholders by their rows, in the same order; rows that are none are left out."""
        marks = ",".join("?" * len(rows))
        query = f"SELECT row,path,size,mtime_ns,content,handle FROM file WHERE row IN ({marks})"
        found: dict[int, RawFile] = {raw[0]: raw for raw in self._reader().execute(query, rows)}
        return [found[row] for row in rows if row in found]

    def handle(self, row: int) -> bytes:
        """The file handle of a row; empty where it is no placeholder."""
        found = self.file(row)
        return b"" if found is None else found.handle

    def path(self, row: int) -> bytes:
        """The path that a row had in the snapshot."""
        found = self._reader().execute("SELECT path FROM file WHERE row=?", (row,)).fetchone()
        return found[0] if found else b""

    def paths(self, rows: Sequence[int]) -> dict[int, bytes]:
        """The paths that rows had in the snapshot; rows that are no placeholders are left out."""
        marks = ",".join("?" * len(rows))
        return dict(self._reader().execute(f"SELECT row,path FROM file WHERE row IN ({marks})", rows))

    def rows_below(self, path: bytes) -> list[int]:
        """The files at or below a path."""
        query = "SELECT row FROM file WHERE path=? OR (path>=? AND path<?) ORDER BY place" if path else "SELECT row FROM file"
        values = (path, path + b"/", path + b"0") if path else ()
        return [row for (row,) in self._reader().execute(query, values)]

    def files_in_order(self) -> Iterator[tuple[int, int, int]]:
        """(row, size, state) in the order in which the source is read cheapest."""
        query = "SELECT row,size,coalesce(state,?) FROM file LEFT JOIN progress USING(row) ORDER BY place,row"
        yield from self._reader().execute(query, (int(State.LAID),))

    def large_rows(self, size: int) -> list[int]:
        """Placeholders of at least this many bytes that may be unrestored."""
        query = "SELECT row FROM file LEFT JOIN progress USING(row) WHERE size>=? AND coalesce(state,?) IN (?,?) ORDER BY place"
        states = (int(State.LAID), int(State.LAID), int(State.REFUSED))
        return [row for (row,) in self._reader().execute(query, (size, *states))]

    @property
    def epoch(self) -> Epoch:
        """The last one."""
        return self._epoch

    def begin_life(self, life: bytes, tell: Callable[[Epoch], None]) -> None:
        """An agent begins to settle; ``tell`` hears of each epoch before the catalog knows what was settled under it."""
        with self._transaction() as db:
            self._epoch, self._tell = Epoch(life, self._epoch.number), tell
            db.execute("INSERT OR REPLACE INTO note VALUES('life',?)", (life,))

    def concluded_after(self, number: int) -> Iterator[tuple[int, bytes]]:
        """(row, handle) of what was settled, or found deleted, under later numbers than this."""
        query = "SELECT row,handle FROM progress JOIN file USING(row) WHERE epoch>? AND state IN (?,?)"
        yield from self._reader().execute(query, (number, int(State.SETTLED), int(State.GONE)))

    def take_back(self, rows: Iterable[int]) -> None:
        """These are unrestored placeholders again."""
        with self._transaction() as db:
            db.execute("DELETE FROM progress WHERE row IN (SELECT value FROM json_each(?))", (json.dumps(list(rows)),))

    def set_states(self, rows: Iterable[int], state: State) -> None:
        """One durable transaction. What is SETTLED is durable on the target by now."""
        # One statement for all: a statement each would take the interpreter from the threads that serve faults.
        query = "INSERT OR REPLACE INTO progress SELECT value,?,? FROM json_each(?) ORDER BY value"
        with self._transaction() as db:
            following = self._epoch._replace(number=self._epoch.number + 1)
            if state == State.SETTLED:
                # Others wait: that a file is gone, say, need not be durable yet, but what comes before the next number is.
                self._tell(following)
                self._epoch = following
                db.execute("INSERT OR REPLACE INTO note VALUES('number',?)", (following.number,))
            db.execute(query, (int(state), following.number, json.dumps(list(rows))))


def _tell_nobody(_: Epoch) -> None:
    """Before ``begin_life``."""
