"""The words of the project as values: nodes of a snapshot, content references, faults, intents and gates."""

from __future__ import annotations

import enum
import mmap
from typing import NamedTuple

import msgspec


class Kind(enum.IntEnum):
    """Type of a node. Values are stored in the catalog: append only."""

    FILE = 0
    DIR = 1
    SYMLINK = 2
    FIFO = 3
    SOCKET = 4
    CHAR = 5
    BLOCK = 6


class Node(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One entry of a snapshot with all its metadata. A Struct, not a dataclass: a million of them are made while planning.

    ``path`` is relative to the restored root, without leading slash; ``b""`` is the root itself. ``mode`` holds the
    permission bits with setuid, setgid and sticky (0o7777). ``rdev`` is a ``dev_t`` as ``os.makedev`` makes it.
    ``link_key`` is equal for the names of one inode with several links, else ``None``. ``content`` is opaque to
    everything but the source that made it. ``holes`` is how many bytes of ``size`` are known to be zero and take no room.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    atime_ns: int = 0
    size: int = 0
    link_target: bytes = b""
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    link_key: tuple[int, int] | None = None
    content: bytes = b""
    holes: int = 0


class Problem(msgspec.Struct, frozen=True):
    """Something of a snapshot that cannot be planned: a damaged tree, a hostile name. The rest goes on."""

    path: bytes
    errno: int
    detail: str


class FileRef(NamedTuple):
    """What a source needs to deliver the content of one file. ``path`` is relative to the restored root."""

    path: bytes
    size: int
    mtime_ns: int
    content: bytes


class Piece(NamedTuple):
    """Verified bytes of a file at ``offset``. What lies between pieces is zero (a hole)."""

    offset: int
    data: bytes | memoryview


class Lane(enum.IntEnum):
    """Why a file is restored now; lower values go first."""

    DEMAND = 0
    PREDICTED = 1
    BACKGROUND = 2


class Intent(enum.IntEnum):
    """What a task wants with a placeholder. Unknown intents count as WRITE, the careful choice.

    Of files by range alone: CHANGE writes in the range of the fault and nowhere else (an open: may do so later), MAP maps
    the file and may write to any page of it at any time from then on. Where that cannot be told: ACCESS reads or writes in the
    range, RING may do anything else, too; without anybody who has the file open for writing both read. WHOLE needs all of it,
    whatever it does: exec, loop devices, holes, and what cannot be known.
    """

    READ = 0
    WRITE = 1
    TRUNCATE = 2
    CHANGE = 3
    MAP = 4
    ACCESS = 5
    RING = 6
    WHOLE = 7


TO_THE_END = 1 << 62
"""The length of a range that ends where the file does."""
FOLIO_BYTES = mmap.PAGESIZE * mmap.PAGESIZE // 8
"""What the largest folio of the page cache holds (2 MiB where pages have 4 KiB): as much as a table of pages maps."""


def whole_folios(offset: int, length: int) -> tuple[int, int]:
    """The (offset, length) that a store into this range may make content of: its folio is dirtied as a whole."""
    begin = offset - offset % FOLIO_BYTES
    return begin, -(-(offset + length) // FOLIO_BYTES) * FOLIO_BYTES - begin


class Ranged(NamedTuple):
    """A file by range: its row, its size in the backup, and the handle of its inode."""

    row: int
    size: int
    handle: bytes


class Gate(enum.IntEnum):
    """Who may go on: those who only read (content complete), all (content durable, marker removed), or these tasks alone."""

    READ = 0
    ALL = 1
    NONE = 2


class Task(NamedTuple):
    """A waiting thread, for people: thread id, thread group id (0: not looked up yet) and command name."""

    tid: int
    tgid: int
    comm: str


class Fault(NamedTuple):
    """A task needs content that is not there. ``range`` is (offset, length) in bytes, ``None`` for the whole file.

    ``row`` is the catalog row that the marker (or the inode number) leads to; ``ticket`` names the wait to the
    interceptor that made it; ``since_ns`` is CLOCK_MONOTONIC. ``handle`` is the file handle of the inode as
    ``linux.handles`` makes it, empty where the interceptor already knows that the inode is the one of that row (a user may
    copy a file together with its marker; the handle tells such a copy from the placeholder).
    ``patient``: by the policy of this machine that task is not served at once, it waits until the background comes by.
    """

    ticket: int
    row: int
    handle: bytes
    intent: Intent
    task: Task
    since_ns: int
    range: tuple[int, int] | None = None
    patient: bool = False
