"""Fill one placeholder: take its inode for ourselves, write verified pieces, put back what writing changes.

An exclusive flock(2) on the inode decides between a demand thread and a worker process: nobody else can hold one, since
no task gets a descriptor of an unfilled placeholder. It ends with the descriptor, so a killed filler blocks nobody.

Before its first write a filler leaves a sign in the nanoseconds of the access time: should the machine fail, the file system
may keep the modification time of a write whose bytes are lost, and that time must not pass for a user's.

A program that runs may not be written to (ETXTBSY, but for some kernels after 6.10). Where a dead agent had let it run, its
content is there: then it is compared instead of written. Else it has to end first.

Not guaranteed: that a user's utimensat(2) in the microseconds between a look at the times and our write is kept; the
nanoseconds of the access time where a filler was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import zlib
from enum import Enum, auto
from typing import TYPE_CHECKING

from active_restore.catalog import FileRow, State
from active_restore.linux import fiemap
from active_restore.linux.files import punch_hole
from active_restore.marker import SAVED_CAPABILITY, marker_value
from active_restore.placeholder import open_inode, read_marker

if TYPE_CHECKING:
    from collections.abc import Callable

    from active_restore.model import Piece
    from active_restore.restore.board import Board

_CAPABILITY = "security.capability"
_SECOND_NS = 10**9


class Claim(Enum):
    """What became of the wish to fill a placeholder."""

    OURS = auto()
    FILLED_ALREADY = auto()
    UNMARKED = auto()
    GONE = auto()
    BUSY = auto()


class Filling:
    """One placeholder being filled. ``claim`` first; then ``write`` and ``finish``, or ``abort``; ``close`` always.

    ``inode`` is a read-only descriptor (-1 where the inode is gone); take it over with ``keep_inode``.
    """

    def __init__(self, mount_fd: int, file: FileRow, board: Board, marker_prefix: bytes) -> None:
        self.file = file
        self.inode = -1
        self.written = 0
        self._began = False
        self._mount = mount_fd
        self._board = board
        self._prefix = marker_prefix
        self._fd = -1
        self._size = 0
        self._times = (0, 0)
        self._last_mtime = 0
        self._fresh = self._runs = False
        self._capability: bytes | None = None
        self._sign_ns = _sign_ns(file)

    def claim(self, *, wait: bool = True) -> Claim:
        """Open and lock the inode. While somebody else fills this very file: wait, or ``BUSY``. Raises ``OSError``."""
        inode = open_inode(self._mount, self.file.handle)
        if inode is None:
            return Claim.GONE
        self.inode = inode
        if read_marker(inode) != marker_value(self._prefix, self.file.row, self.file.handle):
            return Claim.UNMARKED
        if self._board.state[self.file.row] == State.FILLED:
            # It may be running already: nobody may open it for writing then, not even we.
            return Claim.FILLED_ALREADY
        fd = self._open()
        if fd is None:
            return Claim.GONE
        self._fd = fd
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close_file()
            return Claim.BUSY
        state = self._board.state[self.file.row]
        if state != State.LAID:
            self._close_file()
            return Claim.UNMARKED if state == State.SETTLED else Claim.FILLED_ALREADY
        if read_marker(self._fd) is None:
            # Settled while we waited for the lock, and its users' now: by another agent, whose board is not ours.
            self._close_file()
            return Claim.UNMARKED
        self._look()
        return Claim.OURS

    def _open(self) -> int | None:
        try:
            return open_inode(self._mount, self.file.handle, os.O_WRONLY)
        except OSError as error:
            if error.errno != errno.ETXTBSY:
                raise
            self._runs = True
            return open_inode(self._mount, self.file.handle)

    def _look(self) -> None:
        """Remember what writing will change. A user who changed the size with truncate(2) gets no byte beyond it."""
        found = os.fstat(self._fd)
        self._size = min(found.st_size, self.file.ref.size)
        self._fresh = not _has_data(self._fd)
        begun = is_signed(found, self.file)
        # Only writing makes these two times equal: a filler that died here left its own, not a user's.
        was_written = (begun or not self._fresh) and found.st_mtime_ns == found.st_ctime_ns
        accessed = found.st_atime_ns - self._sign_ns if begun else found.st_atime_ns
        self._times = (accessed, self.file.ref.mtime_ns if was_written else found.st_mtime_ns)
        self._last_mtime = found.st_mtime_ns
        self._capability = self._attribute(_CAPABILITY)
        if self._capability is not None:
            os.setxattr(self._fd, SAVED_CAPABILITY, self._capability)
        else:
            self._capability = self._attribute(SAVED_CAPABILITY)
        if not self._fresh:
            self._give_back_lost()

    def _give_back_lost(self) -> None:
        """Where a dead agent's write failed, ext4 has blocks that were never written, and pages that say they were.

        Written again, such a page reaches the disk, but its block goes on reading as zeros (seen with 6.18).
        """
        for begin, end in list(fiemap.unwritten(self._fd)):
            self._may_write()
            if not self._began:
                self._sign()
            self._began = True
            punch_hole(self._fd, begin, end - begin)
            self._last_mtime = os.fstat(self._fd).st_mtime_ns

    def _attribute(self, name: str) -> bytes | None:
        try:
            return os.getxattr(self._fd, name)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return None
            raise

    def write(self, piece: Piece) -> None:
        """Write verified bytes. Raises ``OSError`` (ENOSPC, EDQUOT, EIO; ETXTBSY where a program runs that has others)."""
        if self.written:
            self._notice_times()
        room = self._size - piece.offset
        data = memoryview(piece.data)[: max(room, 0)]
        offset = piece.offset
        if self._runs and os.pread(self._fd, len(data), offset) == data:
            self.written += len(piece.data)
            return
        self._may_write()
        if not self._began:
            self._sign()
        # Also a write that fails changes the times, and may leave a part.
        self._began = True
        while data:
            count = os.pwrite(self._fd, data, offset)
            data = data[count:]
            offset += count
        self.written += len(piece.data)
        self._last_mtime = os.fstat(self._fd).st_mtime_ns

    def _may_write(self) -> None:
        if self._runs:
            raise OSError(errno.ETXTBSY, os.strerror(errno.ETXTBSY))

    def _sign(self) -> None:
        accessed = self._times[0]
        os.utime(self._fd, ns=(accessed - accessed % _SECOND_NS + self._sign_ns, self._times[1]))

    def _notice_times(self) -> None:
        """Times that are not from our last write are a user's: those are put back at the end."""
        found = os.fstat(self._fd)
        if found.st_mtime_ns != self._last_mtime:
            self._times = (self._times[0] if is_signed(found, self.file) else found.st_atime_ns, found.st_mtime_ns)

    def finish(self, tell: Callable[[int], None] | None = None) -> None:
        """All pieces are written: put back times and capabilities; the content may be read from now on.

        ``tell`` gets the descriptor before anybody else may know.
        """
        if self.written:
            self._notice_times()
        # Times first: setting an attribute moves the time of change away from that of our write, by which it is known.
        os.utime(self._fd, ns=self._times)
        self._put_capability_back()
        if tell is not None:
            tell(self._fd)
        self._board.state[self.file.row] = State.FILLED
        self._close_file()

    def _put_capability_back(self) -> None:
        if self._capability is not None:
            with contextlib.suppress(FileExistsError):
                os.setxattr(self._fd, _CAPABILITY, self._capability, os.XATTR_CREATE)
            os.removexattr(self._fd, SAVED_CAPABILITY)

    def discard(self) -> None:
        """The task truncates the file anyway: do it for it, so that no other task sees zeros in between."""
        self._may_write()
        os.ftruncate(self._fd, 0)
        if self._capability is not None:
            os.removexattr(self._fd, SAVED_CAPABILITY)
        self._board.state[self.file.row] = State.FILLED
        self._close_file()

    def abort(self) -> None:
        """What was written is worth nothing: give the room back; the placeholder stays as it was.

        Only where there was nothing before: a dead agent may have filled this file, and a task may be reading it.
        """
        if self._fd < 0:
            return
        if self._began and self._fresh:
            with contextlib.suppress(OSError):
                punch_hole(self._fd, 0, self.file.ref.size)
        with contextlib.suppress(OSError):
            if self._began:
                os.utime(self._fd, ns=self._times)
            self._put_capability_back()

    def keep_inode(self) -> int:
        """Hand the read-only descriptor over to the caller."""
        inode, self.inode = self.inode, -1
        return inode

    def _close_file(self) -> None:
        """No writable descriptor may be left when a task goes on: execve(2) would fail with ETXTBSY."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Give back every descriptor; the lock ends with it."""
        self._close_file()
        if self.inode >= 0:
            os.close(self.inode)
            self.inode = -1


def _sign_ns(file: FileRow) -> int:
    return zlib.crc32(b"begun" + file.handle) % _SECOND_NS


def is_signed(found: os.stat_result, file: FileRow) -> bool:
    """Whether somebody began to fill this file and has not come to the end."""
    return found.st_atime_ns % _SECOND_NS == _sign_ns(file)


def _has_data(fd: int) -> bool:
    """Whether anything was ever written here, delayed allocations included."""
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
    return True
