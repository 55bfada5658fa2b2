"""The guard: one thread that reads every permission event of the file system and answers all but placeholders at once.

For each event: no marker of ours -> allow and ignore this inode from now on; content complete and
the task only reads -> allow; a file by range and the pages that are wanted are there -> allow; else forward it.
It makes no allocation that can fail late, takes no lock that others hold for long, and never opens a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import TYPE_CHECKING

from active_restore.intercept.ledger import Wish
from active_restore.intercept.wire import FaultPacket
from active_restore.linux import accesses, fanotify, mounts, tasks
from active_restore.linux.handles import HandleMaker
from active_restore.linux.leases import open_for_writing
from active_restore.marker import MARKER, marker_row
from active_restore.model import Intent

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from active_restore.intercept.ledger import Ledger

    # The range is None for the whole file.
    _Wanted: TypeAlias = tuple[Intent, tuple[int, int] | None]

IGNORE = fanotify.FAN_MARK_ADD | fanotify.FAN_MARK_IGNORE | fanotify.FAN_MARK_IGNORED_SURV_MODIFY | fanotify.FAN_MARK_EVICTABLE
UNIGNORE = fanotify.FAN_MARK_REMOVE | fanotify.FAN_MARK_IGNORE
# One event with a range, or two without: a keeper that is killed leaves no more than these without a note.
_READ_BYTES = 48
_OURS_FAILED = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL})
_NO_MARKER = frozenset({errno.ENODATA, errno.EOPNOTSUPP})
BURST = 64
_LOOK_MS = 200
# Whether this is a placeholder cannot be known (the disk fails, the marker is broken): refuse, never guess.
UNREADABLE = -1


class Guard:
    """Reads ``group``. ``forward`` gets every fault, ``on_burst`` is called at every ``BURST`` that pass; neither may block."""

    def __init__(
        self,
        group: int,
        ledger: Ledger,
        marker_prefix: bytes,
        mask: int,
        forward: Callable[[FaultPacket], None],
        on_burst: Callable[[], None],
    ) -> None:
        self._group = group
        self._ledger = ledger
        self._prefix = marker_prefix
        self._mask = mask
        self._forward, self._on_burst = forward, on_burst
        self._passed = 0
        self._handles = HandleMaker()

    def run(self, is_over: Callable[[], bool] | None = None) -> None:
        """Serve until the group's descriptor is closed, or until this is so: then nothing was read that is not noted."""
        while is_over is None or self._is_wanted(is_over):
            try:
                events = [event for event in fanotify.parse(os.read(self._group, _READ_BYTES)) if event.fd >= 0]
            except OSError as error:
                if error.errno in _OURS_FAILED:
                    raise
                # The kernel could not open the file for us (encrypted, damaged, out of memory) and has denied that event.
                continue
            for event in events:
                self._ledger.open_ticket(event.fd)
            for event in events:
                self._judge(event)

    def _is_wanted(self, is_over: Callable[[], bool]) -> bool:
        """Wait for an event; ``False`` where it is over before that."""
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        while not is_over():
            if poll.poll(_LOOK_MS):
                return True
        return False

    def _judge(self, event: fanotify.Event) -> None:
        number = event.fd
        ledger = self._ledger
        row = self._row_of(event)
        if row is None:
            # The answer first: the task need not wait for what only its next open is about.
            answer(self._group, number, 0)
            if ledger.learning:
                with contextlib.suppress(OSError):
                    fanotify.mark_fd(self._group, IGNORE, self._mask, number)
            self.forget(number)
            self._count()
            return
        if row == UNREADABLE or os.fstat(number).st_dev != ledger.device:
            # The latter is in a btrfs snapshot of placeholders, which nobody will ever fill.
            self.answer(number, errno.EIO)
            return
        wanted = self._wanted(event, row)
        if wanted is None:
            self.answer(number, 0)
            self._count()
            return
        if ledger.refusal:
            self.answer(number, ledger.refusal)
            return
        intent, span = wanted
        wish = Wish(event.tid, intent, time.monotonic_ns(), *(span or (-1, 0)), self._handles.of_fd(number))
        ledger.note(number, row, wish)
        self._forward(FaultPacket(number, row, *wish))
        # Only people want to know the names: they are looked up while the agent is at work.
        _, tgid, comm = tasks.describe(event.tid)
        ledger.note_names(number, tgid, comm)

    def _count(self) -> None:
        self._passed += 1
        if not self._passed % BURST:
            self._on_burst()

    def _wanted(self, event: fanotify.Event, row: int) -> _Wanted | None:
        """What the task wants; ``None`` where nothing stands in its way."""
        if self._ledger.is_by_range(row):
            return self._opening_by_range(event) if event.range is None else self._access_by_range(event, row, event.range)
        intent = tasks.intent(event.tid) if event.range is None else tasks.access_intent(event.tid)
        if self._ledger.is_readable(row) and (intent is Intent.READ or (event.range is None and _only_reads(event))):
            return None
        return intent, event.range

    def _access_by_range(self, event: fanotify.Event, row: int, told: tuple[int, int]) -> _Wanted | None:
        """Who reads or writes pages that are there goes on, the first writer excepted."""
        intent, span = accesses.access(event.tid, event.fd, told, windows=self._ledger.windows)
        presence = self._ledger.presence(row)
        if not presence.covers(*presence.clip(*span)):
            return intent, span
        if intent in (Intent.ACCESS, Intent.RING) and not open_for_writing(event.fd):
            return None
        # Of an access that may be a read the agent asks again: it has the file open for writing itself now and then.
        passes = intent is Intent.READ or (intent in (Intent.CHANGE, Intent.MAP, Intent.ACCESS) and presence.touched)
        return None if passes else (intent, span)

    def _opening_by_range(self, event: fanotify.Event) -> _Wanted | None:
        """Who opens such a file goes on."""
        intent = accesses.open_intent(event.tid)
        if intent not in (Intent.READ, Intent.CHANGE):
            return intent, None
        try:
            # Of a file system above ours nobody sees which range it maps; nor would BPF let this task wait for a range.
            is_whole = mounts.is_for_others(event.fd, event.tid) or (
                not self._mask & fanotify.FAN_PRE_ACCESS and tasks.cannot_restart(event.tid)
            )
        except (OSError, ValueError):
            is_whole = True
        return (Intent.WHOLE, None) if is_whole else None

    def _row_of(self, event: fanotify.Event) -> int | None:
        """The row of a placeholder of ours."""
        try:
            value = os.getxattr(event.fd, MARKER)
        except OSError as error:
            if error.errno not in _NO_MARKER:
                return UNREADABLE
            value = b""
        if value.startswith(self._prefix):
            try:
                return marker_row(self._prefix, value)
            except ValueError:
                return UNREADABLE
        # No marker, or one of another restore, whose own guard holds it.
        return None

    def answer(self, number: int, refusal: int) -> None:
        """Answer an event that we hold a descriptor for. The answer comes first: a number in use is never given twice."""
        answer(self._group, number, refusal)
        self.forget(number)

    def forget(self, number: int) -> None:
        """The event was answered, here or by the agent: free its number."""
        # In this order: with its descriptor closed the number may be that of another event at once.
        self._ledger.close_ticket(number)
        with contextlib.suppress(OSError):
            os.close(number)


def _only_reads(event: fanotify.Event) -> bool:
    """Whether an open of which the registers do not tell it (openat2) is for reading.

    Its flags lie in memory that another thread of the task may change; the kernel's count of writers does not.
    """
    return accesses.open_intent(event.tid) is Intent.READ and not open_for_writing(event.fd)


def answer(group: int, number: int, refusal: int) -> bool:
    """Let the task of an event go on; with an errno as ``refusal`` it fails. An event that is gone is no error.

    ``False`` where we have left the group: the task waits for others.
    """
    response = fanotify.deny(refusal) if refusal else fanotify.FAN_ALLOW
    try:
        fanotify.respond(group, number, response)
    except OSError as error:
        if error.errno == errno.EBADF:
            return False
        if error.errno == errno.EINVAL and refusal:
            # Before 6.13, and for errnos that the kernel does not pass on, a refusal is a plain EPERM.
            with contextlib.suppress(OSError):
                fanotify.respond(group, number, fanotify.FAN_DENY)
    return True
