"""Memory shared by agent, keeper and standby keeper: how to answer, which events are unanswered, which pages are there.

It lives in a memfd, so it outlives each of them. Words of 64 bits; single words are written whole, which is all the
atomicity that is needed: every word has one writer at a time.

Not kept here: the descriptors of events. They die with the keeper that read them; the number alone answers an event.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from active_restore.model import Task
from active_restore.presence import Presence, memory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

LEDGER_NAME = "active-restore-ledger"
"""Of its memory, as links in /proc tell it."""

_SETTING = 0
_REFUSAL = 1
_HIGHEST = 2
_MASK = 3
_KEEPER = 4
_STANDBY = 5
_DEVICE = 6
_RANGED = 7
_WINDOWS = 8
_TICKETS = 16
_TICKET_SLOTS = 1 << 20
_WORDS_BYTES = (_TICKETS + _TICKET_SLOTS) * 8
# Who waits: process id, command name; and for what: see Wish.
_NAMES = struct.Struct("=I16s")
_WISH = struct.Struct("=IIQqQ64p")
_WISH_BYTES = _NAMES.size + _WISH.size
_LONGEST_HANDLE = 63
_WISHES_END = _WORDS_BYTES + _TICKET_SLOTS * _WISH_BYTES
# Rows beyond are served all the same, by the agent.
_MAX_ROWS = 1 << 28
_ROWS_END = _WISHES_END + _MAX_ROWS
# Files by range: row, then where the bits of its pages lie (and how big the file is). Room for 32 TiB of such files.
_RANGE = struct.Struct("=QQQ")
_MAX_RANGED = 1 << 15
_BITS = _ROWS_END + _MAX_RANGED * _RANGE.size
_MAX_BITS_BYTES = 1 << 30
_UNKNOWN = 1
_ROW_OFFSET = 2

_LEARNING = 1
_DISARMED = 2

_READABLE = 1
_BY_RANGE = 2
_DOUBTED = 3
_DOUBTING = bytes.maketrans(bytes((_READABLE, _BY_RANGE)), bytes((_DOUBTED, _DOUBTED)))


class Wish(NamedTuple):
    """What the task of an event waits for, so that whoever comes after a dead keeper can serve just that.

    The fields are those of ``wire.FaultPacket``; a handle that is too long to be kept is empty.
    """

    tid: int
    intent: int
    since_ns: int
    offset: int
    length: int
    handle: bytes


class Ledger:
    """The shared words, and a byte a row: whether its content is complete, so that readers need not wait.

    ``fd`` is the memfd; hand it on by inheritance or SCM_RIGHTS.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._view = memoryview(self._map)
        self._words = self._view[:_WORDS_BYTES].cast("Q")
        self._wishes = self._view[_WORDS_BYTES:_WISHES_END]
        self._rows = self._view[_WISHES_END:_ROWS_END]
        self._ranges = self._view[_ROWS_END:]
        self._places: dict[int, tuple[int, int]] = {}
        self._lasting: memoryview | None = None

    @classmethod
    def create(cls) -> Ledger:
        """A new, empty ledger. It is sparse: rows cost memory when they are filled."""
        fd = os.memfd_create(LEDGER_NAME, os.MFD_CLOEXEC)
        os.ftruncate(fd, _BITS + _MAX_BITS_BYTES)
        return cls(fd)

    def close(self) -> None:
        """Unmap and close our descriptor."""
        self._words.release()
        self._wishes.release()
        self._rows.release()
        self._ranges.release()
        self._view.release()
        self._map.close()
        os.close(self.fd)

    @property
    def learning(self) -> bool:
        """Whether inodes without marker may be ignored from now on (everything is laid)."""
        return self._words[_SETTING] == _LEARNING

    def learn(self) -> None:
        """From now on an inode without marker will never be a placeholder."""
        self._words[_SETTING] = _LEARNING

    @property
    def disarmed(self) -> bool:
        """Whether the guard was ended on purpose."""
        return self._words[_SETTING] == _DISARMED

    def disarm(self) -> None:
        """Nothing is left to guard."""
        self._words[_SETTING] = _DISARMED

    def is_readable(self, row: int) -> bool:
        """Whether the content of a row is complete, though not durable yet."""
        return row < len(self._rows) and self._rows[row] == _READABLE

    def make_readable(self, row: int) -> None:
        """The content of a row is complete: tasks that only read may go on, now and later, whatever becomes of the agent."""
        if row < len(self._rows):
            self._rows[row] = _READABLE

    def doubt(self, rows: Iterable[int]) -> None:
        """What was there of these may be lost: nobody goes on before it was filled again."""
        for row in rows:
            if row < len(self._rows) and self._rows[row]:
                self._rows[row] = _DOUBTED

    def doubt_all(self, rows: int) -> None:
        """The same of this many rows, from the first on."""
        known = self._rows[:rows]
        known[:] = bytes(known).translate(_DOUBTING)

    def was_readable(self, row: int) -> bool:
        """Whether readers were let go on to the whole file, though they may not be now."""
        if row >= len(self._rows) or self._rows[row] not in (_READABLE, _DOUBTED):
            return False
        # Of a file by range that is doubted, too, no more was ever there than its pages.
        return self._place(row) is None

    def is_by_range(self, row: int) -> bool:
        """Whether this file opens at once, and each access to a range of it is an event to look at."""
        return row < len(self._rows) and self._rows[row] == _BY_RANGE

    def hold_range(self, row: int, size: int) -> tuple[memoryview, bool] | None:
        """From now on this file is one by range: the memory of its ``Presence``, and whether that is new (all zeros).

        ``None`` where there is no room for another one.
        """
        if (known := self._place(row)) is not None:
            bits, doubted = self._bits(*known), self._rows[row] == _DOUBTED
            if doubted:
                bits[:] = bytes(len(bits))
                self._rows[row] = _BY_RANGE
            return bits, doubted
        count = self._words[_RANGED]
        last = _RANGE.unpack_from(self._ranges, (count - 1) * _RANGE.size) if count else (0, _BITS - _ROWS_END, 0)
        start = last[1] + memory_bytes(last[2])
        end = start + memory_bytes(size)
        if row >= len(self._rows) or count >= _MAX_RANGED or end > len(self._ranges):
            return None
        _RANGE.pack_into(self._ranges, count * _RANGE.size, row, start, size)
        self._words[_RANGED] = count + 1
        self._rows[row] = _BY_RANGE
        return self._bits(start, size), True

    def _bits(self, start: int, size: int) -> memoryview:
        """Of a mapping of its own, which lives as long as somebody uses it: ours may be closed before that."""
        if self._lasting is None:
            self._lasting = memoryview(mmap.mmap(self.fd, os.fstat(self.fd).st_size))
        return self._lasting[_ROWS_END + start :][: memory_bytes(size)]

    def presence(self, row: int) -> Presence:
        """The pages of a file by range."""
        place = self._place(row)
        if place is None:
            raise KeyError(row)
        start, size = place
        return Presence(self._ranges[start : start + memory_bytes(size)], size)

    def _place(self, row: int) -> tuple[int, int] | None:
        """Where the bits of a row lie, and the size of its file."""
        for number in range(len(self._places), self._words[_RANGED]):
            known, start, size = _RANGE.unpack_from(self._ranges, number * _RANGE.size)
            self._places[known] = (start, size)
        return self._places.get(row)

    @property
    def refusal(self) -> int:
        """0: hold tasks; else the errno that every access to a placeholder gets."""
        return self._words[_REFUSAL]

    @refusal.setter
    def refusal(self, errno: int) -> None:
        self._words[_REFUSAL] = errno

    @property
    def mask(self) -> int:
        """The fanotify events that this kernel can hold on this file system."""
        return self._words[_MASK]

    @mask.setter
    def mask(self, mask: int) -> None:
        self._words[_MASK] = mask

    @property
    def windows(self) -> bool:
        """Whether a mapping waits just for what it shows now: somebody is told when it shows more."""
        return bool(self._words[_WINDOWS])

    @windows.setter
    def windows(self, in_force: bool) -> None:
        self._words[_WINDOWS] = in_force

    @property
    def device(self) -> int:
        """``st_dev`` of the placeholders: on btrfs a snapshot of them has another one."""
        return self._words[_DEVICE]

    @device.setter
    def device(self, number: int) -> None:
        self._words[_DEVICE] = number

    @property
    def keeper(self) -> int:
        """The process that reads the group."""
        return self._words[_KEEPER]

    @property
    def standby(self) -> int:
        """The process that waits for the keeper's death; 0 where it has just taken over."""
        return self._words[_STANDBY]

    def stand_by(self, pid: int) -> None:
        """This process is the standby now."""
        self._words[_STANDBY] = pid

    def keep(self, pid: int) -> None:
        """This process is the keeper now. In this order: whoever looks finds it in one of the two places at any time."""
        self._words[_KEEPER] = pid
        if self._words[_STANDBY] == pid:
            self._words[_STANDBY] = 0

    def await_turn(self) -> None:
        """Wait until no other process reads the group; then nobody else does until this process ends.

        Several may stand by (an agent dies while it starts one, and the next agent starts another). Two who read the same group
        give the same numbers to different events, and the answer to one would let the task of the other go on.
        """
        # A description of our own: those that were inherited are one and the same, and so would be their lock.
        turn = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(turn, fcntl.LOCK_EX)

    @property
    def highest(self) -> int:
        """The highest event number that was ever seen."""
        return self._words[_HIGHEST]

    def open_ticket(self, number: int) -> None:
        """An event was read."""
        self._words[_TICKETS + number] = _UNKNOWN
        if number > self._words[_HIGHEST]:
            self._words[_HIGHEST] = number

    def note(self, number: int, row: int, wish: Wish) -> None:
        """The event is about this placeholder. In this order: who finds the row finds a wish that is complete."""
        handle = wish.handle if len(wish.handle) <= _LONGEST_HANDLE else b""
        at = number * _WISH_BYTES
        _NAMES.pack_into(self._wishes, at, 0, b"")
        _WISH.pack_into(self._wishes, at + _NAMES.size, *wish[:-1], handle)
        self._words[_TICKETS + number] = row + _ROW_OFFSET

    def wish(self, number: int) -> Wish:
        """What the task of this event waits for."""
        return Wish(*_WISH.unpack_from(self._wishes, number * _WISH_BYTES + _NAMES.size))

    def note_names(self, number: int, tgid: int, comm: str) -> None:
        """Whose event it is."""
        _NAMES.pack_into(self._wishes, number * _WISH_BYTES, tgid, comm.encode(errors="surrogateescape")[:16])

    def task(self, number: int) -> Task:
        """Whose event it is; its ``tgid`` is 0 as long as nobody has looked."""
        at = number * _WISH_BYTES
        tgid, comm = _NAMES.unpack_from(self._wishes, at)
        return Task(self.wish(number).tid, tgid, comm.rstrip(b"\0").decode(errors="replace"))

    def close_ticket(self, number: int) -> None:
        """The event was answered."""
        self._words[_TICKETS + number] = 0

    def unanswered(self) -> dict[int, int | None]:
        """Event numbers without answer, with their rows (``None``: not a placeholder, or not looked at yet)."""
        found: dict[int, int | None] = {}
        for number in range(self.highest + 1):
            word = self._words[_TICKETS + number]
            if word:
                found[number] = word - _ROW_OFFSET if word >= _ROW_OFFSET else None
        return found
