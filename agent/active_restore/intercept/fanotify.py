"""The fanotify interceptor: the kernel holds the task inside open(2) until the event is answered.

The keeper reads events; ``serve`` gets its faults as packets, and answers go straight to the group. An open is a fault, so
SEEK_DATA, reflinks, mappings and exec need nothing of their own.
Where the kernel has pre-content events (6.14), truncate(2) by path is held, too, and files may be held by range instead.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from active_restore.errors import CapabilityMissing, NotRunning, TargetError
from active_restore.intercept import copies, keepers, wire
from active_restore.intercept.group import make_group, supported_mask
from active_restore.intercept.guard import IGNORE, UNIGNORE, answer
from active_restore.intercept.ledger import Ledger
from active_restore.intercept.policy import Judge, Treatment
from active_restore.intercept.windows import FIRST_TICKET, Windows
from active_restore.intercept.wire import FaultPacket
from active_restore.linux import fanotify, tasks
from active_restore.linux.new_mount import PrivateMount
from active_restore.model import Fault, Gate, Intent, Ranged, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from active_restore.intercept.base import Territory

_log = logging.getLogger(__name__)
_PASS = fanotify.FAN_MARK_ADD | fanotify.FAN_MARK_MOUNT | fanotify.FAN_MARK_IGNORE | fanotify.FAN_MARK_IGNORED_SURV_MODIFY
_LOOK_SECONDS = 1.0
_LOOK_AFTER_SECONDS = 0.05
_MANY_NUMBERS = 256
_NUMBERS_A_PACKET = 4096
# A ticket is the event's number below, and above how many keepers have died before the one that gave it.
_NUMBER_BITS = 32
_NUMBER = (1 << _NUMBER_BITS) - 1


class FanotifyInterceptor:
    """See ``intercept.base.Interceptor`` for what each method promises."""

    name = "fanotify"
    serve_threads = 2
    needs_inode_numbers = False

    def __init__(self) -> None:
        self._territory: Territory | None = None
        self._link: keepers.Link | None = None
        self.reason = ""
        self._ending = False
        self._ended = threading.Event()
        self._relink = threading.Lock()
        self._answering = threading.Lock()
        self._keepers = 0
        self._passage: PrivateMount | None = None
        self._answered: list[int] = []
        self._leading = threading.Lock()
        self._led_since, self._leader = 0.0, 0
        self._complaints = -1
        self._windows, self.unmoved = Windows(), False

    def arm(self, territory: Territory) -> None:
        """Make the group, start the keeper, and only then mark the file system (it opens files to start)."""
        group = make_group()
        try:
            self._arm(group, territory)
        finally:
            os.close(group)

    def _arm(self, group: int, territory: Territory) -> None:
        ledger = Ledger.create()
        listener = keepers.listen(territory.run_dir)
        with listener, contextlib.closing(ledger):
            try:
                mask = supported_mask(group, territory.root)
                ledger.mask = mask
                ledger.device = os.stat(territory.root).st_dev
                self._complaints = keepers.open_log(territory.run_dir)
                keepers.Keepers(group, ledger, listener, territory.marker_prefix, mask, self._complaints).start()
                self._mark(group, territory.root, fanotify.FAN_OPEN_PERM)
            except OSError as error:
                raise TargetError(
                    f"the file system of {territory.root} cannot be guarded ({error.strerror})",
                    "use ext4, xfs or btrfs; see: active-restore doctor",
                ) from error
        self._territory, self._judge = territory, Judge(territory.policy)
        self._link = keepers.connect(territory.run_dir)
        self._open_passage()
        copies.offer(*self._linked())
        self._watch_standby()

    @staticmethod
    def _mark(group: int, root: str, mask: int) -> None:
        fanotify.mark_path(group, fanotify.FAN_MARK_ADD | fanotify.FAN_MARK_FILESYSTEM, mask, root)

    def add(self, inodes: Iterable[tuple[int, int]], handle_of: Callable[[int], bytes] | None = None) -> None:
        """Nothing to do: the marker on the inode is the registration."""

    def laid(self) -> None:
        """Watch truncate(2) from now on (laying does that itself), and let the guard learn which inodes are plain."""
        link, territory = self._linked()
        with self._relink:
            # Started beside the laying: from now on there is something to lose.
            self._need_standby(territory)
        self._mark(link.group, territory.root, link.ledger.mask)
        link.ledger.learn()

    @property
    def ranges(self) -> str:
        """Kernel 6.14 and later."""
        return "pre-content events" if self._linked()[0].ledger.mask & fanotify.FAN_PRE_ACCESS else ""

    @property
    def windows(self) -> bool:
        """Where ``windows.Windows`` could be loaded."""
        return self._linked()[0].ledger.windows

    def hold_ranges(self, files: Sequence[Ranged]) -> list[tuple[memoryview, bool]]:
        """A byte of the ledger for each, and bits for its pages; the keeper passes opens from now on."""
        held = self.pass_opens(files) if self.ranges else []
        link, territory = self._linked()
        self._windows.guard(files[: len(held)], self.passage(), territory, link.ledger)
        return held

    def pass_opens(self, files: Sequence[Ranged]) -> list[tuple[memoryview, bool]]:
        """The same, whoever it is that holds their accesses."""
        hold = self._linked()[0].ledger.hold_range
        return list(itertools.takewhile(bool, (hold(file.row, file.size) for file in files)))  # type: ignore[misc]

    def adopt(self, territory: Territory) -> bool:
        """Connect to the keeper that is left. Raises ``Busy`` where it has an agent."""
        keepers.rouse_all()
        try:
            self._link = keepers.connect(territory.run_dir)
        except NotRunning:
            return False
        self._complaints = keepers.open_log(territory.run_dir)
        self._territory, self._judge = territory, Judge(territory.policy)
        self.unmoved = fanotify.watches_filesystem(self._link.group, territory.root)
        if not self.unmoved:
            # Mounted again: it may have another number, and be in another state than what is known of it.
            self._link.ledger.doubt_all(territory.rows)
            self._link.ledger.device = os.stat(territory.root).st_dev
        self._open_passage()
        self.laid()
        copies.offer(*self._linked())
        self._watch_standby()
        return True

    def _open_passage(self) -> None:
        """A mount of our own whose opens the kernel does not report."""
        link, territory = self._linked()
        self._passage = PrivateMount(territory.root)
        fanotify.mark_fd(link.group, _PASS, link.ledger.mask, self._passage.root)

    def passage(self) -> int:
        """A directory on a mount of our own, see ``_open_passage``."""
        assert self._passage is not None
        return self._passage.root

    def _linked(self) -> tuple[keepers.Link, Territory]:
        if self._link is None or self._territory is None:
            raise RuntimeError("the interceptor is not armed")
        return self._link, self._territory

    @property
    def keeper_pid(self) -> int:
        """The process that reads the events now."""
        return self._linked()[0].keeper_pid

    def serve(self, on_fault: Callable[[Fault], None]) -> None:
        """Deliver faults until ``disarm``, ``leave`` or ``abandon``; a dead keeper is replaced by its standby."""
        if self._leading.acquire(blocking=False):
            self._leader = threading.get_ident()
            self._windows.serve(on_fault)
            while not self._ending:
                # Not at once: it takes the keeper's time, and the next fault of the same task is about to come.
                if len(self._answered) >= _MANY_NUMBERS or (self._answered and not wire.comes_soon(self._linked()[0].sock)):
                    self._tell_answered()
                self._receive(on_fault, 0)
            return
        # One thread does it all, so that its processor's caches stay warm (measured: half the time). Where it does not
        # come back soon (a file system of the source that hangs), this one takes its place.
        while not self._ended.wait(_LOOK_AFTER_SECONDS):
            while not self._ending and self._led_since and time.monotonic() - self._led_since > _LOOK_AFTER_SECONDS:
                if not self._receive(on_fault, socket.MSG_DONTWAIT):
                    break

    def _receive(self, on_fault: Callable[[Fault], None], flags: int) -> bool:
        """Deliver one fault; ``False`` where none is there (with MSG_DONTWAIT)."""
        with self._answering:
            keeper = self._keepers
            link, _ = self._linked()
        try:
            packet = link.sock.recv(wire.MAX_PACKET_BYTES, flags)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if packet:
            kind, values = wire.unpack(packet)
            if kind == wire.FAULT:
                leads = threading.get_ident() == self._leader
                if leads:
                    self._led_since = time.monotonic()
                self._deliver(FaultPacket(*values), keeper, on_fault)
                if leads:
                    self._led_since = 0.0
        elif not self._ending:
            self._reconnect(link)
        return True

    def _deliver(self, packet: FaultPacket, keeper: int, on_fault: Callable[[Fault], None]) -> None:
        """Whatever goes wrong, this thread goes on serving, and the task gets an error instead of waiting for ever."""
        fault = _fault(packet, keeper)
        try:
            treatment = self._judge.of(packet.tid) if self._judge else Treatment.SERVE
            if treatment is Treatment.REFUSE:
                self._answer([fault], errno.EAGAIN)
            else:
                on_fault(fault._replace(patient=True) if treatment is Treatment.BACKGROUND else fault)
        except Exception:
            _log.exception("a fault could not be handled")
            self._answer([fault], errno.EIO)

    def _reconnect(self, lost: keepers.Link) -> None:
        """The keeper died: its standby listens on the same socket and needs a moment to take over."""
        with self._relink:
            if self._ending or self._link is not lost:
                return
            if (link := self._find_successor(self._linked()[1])) is None:
                return
            # Group and ledger are the same objects as before; other threads use the old descriptors right now.
            with self._answering:
                self._keepers += 1
                # The successor sees in the ledger that these are answered, and gives their numbers out again.
                self._answered.clear()
                self._link = lost._replace(sock=link.sock, keeper_pid=link.keeper_pid)
            os.close(link.group)
            os.close(link.listener)
            link.ledger.close()

    def _find_successor(self, territory: Territory) -> keepers.Link | None:
        """A standby accepts when it has taken over; where both died, a new one does. ``None``: nothing is left to guard."""
        while not self._linked()[0].ledger.disarmed:
            try:
                self._need_standby(territory)
                return keepers.connect(territory.run_dir)
            except (CapabilityMissing, OSError):
                # One that was just starting was killed, too, or the machine is out of memory: tasks wait, we try again.
                self._ended.wait(_LOOK_SECONDS)
        self._ended.wait(_LOOK_AFTER_SECONDS)
        return None

    def _need_standby(self, territory: Territory) -> None:
        """Start a standby unless one is there. Only with ``_relink`` held."""
        keepers.need_standby(self._linked()[0], territory.marker_prefix, self._complaints)

    def _watch_standby(self) -> None:
        """A standby that dies, or becomes the keeper, is replaced: by a thread that looks every second."""
        threading.Thread(target=self._keep_standby, name="standby", daemon=True).start()

    def _keep_standby(self) -> None:
        while True:
            with self._relink:
                _, territory = self._linked()
                if not self._ending:
                    with contextlib.suppress(CapabilityMissing, OSError):
                        self._need_standby(territory)
            if self._ended.wait(_LOOK_SECONDS):
                return

    def release(self, row: int, gate: Gate, faults: Sequence[Fault]) -> None:
        """Answer. For readers the gate is a byte of the ledger; for all it is the marker, which the engine removes itself."""
        if gate is Gate.READ:
            self._linked()[0].ledger.make_readable(row)
        self._answer(faults, 0)

    def refuse(self, row: int, errno: int, faults: Sequence[Fault]) -> None:
        """Answer with an errno (EPERM before kernel 6.13)."""
        self._answer(faults, errno)

    def _answer(self, faults: Sequence[Fault], refusal: int) -> None:
        self._windows.answer([fault.ticket for fault in faults if fault.ticket >= FIRST_TICKET], refusal)
        with self._answering:
            # Faults of a keeper that has died are left alone: its successor has reported them again, and may have given
            # their numbers to other events after that was answered.
            numbers = [fault.ticket & _NUMBER for fault in faults if fault.ticket >> _NUMBER_BITS == self._keepers]
            link = self._linked()[0]
            for number in numbers:
                # When we have left already, the ledger must go on saying that the task waits.
                if answer(link.group, number, refusal):
                    link.ledger.close_ticket(number)
            self._answered.extend(numbers)
        if threading.get_ident() != self._leader:
            self._tell_answered()

    def _tell_answered(self) -> None:
        """Let the keeper close the descriptors of what was answered; each of them keeps a mount busy."""
        with self._answering:
            numbers, self._answered = self._answered, []
            link, _ = self._linked()
            with contextlib.suppress(OSError):
                # Lost with a dying keeper: its standby finds the numbers unanswered and reports them again.
                for start in range(0, len(numbers), _NUMBERS_A_PACKET):
                    packet = wire.pack(wire.DONE, numbers[start : start + _NUMBERS_A_PACKET])
                    link.sock.send(packet, socket.MSG_NOSIGNAL)

    def describe(self, fault: Fault) -> Task:
        """As the keeper has found out meanwhile; a number is not used again before it was told that it is answered."""
        number = fault.ticket & _NUMBER
        with self._answering:
            if fault.ticket >> _NUMBER_BITS != self._keepers:
                return fault.task
            who = self._linked()[0].ledger.task(number)
        return who if who.tgid else tasks.describe(fault.task.tid)

    def filled(self, inode: int) -> None:
        """Reads raise no event now (of three events, two), nor does truncate(2) by path. Opens do, until the marker is gone."""
        self._mark_accesses(IGNORE, inode)

    def unfilled(self, inode: int) -> None:
        """Without its ignore mark, truncate(2) by path raises an event again. There may be none: marks can be evicted."""
        self._mark_accesses(UNIGNORE, inode)

    def _mark_accesses(self, flags: int, inode: int) -> None:
        link, _ = self._linked()
        if link.ledger.mask & fanotify.FAN_PRE_ACCESS:
            with contextlib.suppress(OSError):
                fanotify.mark_fd(link.group, flags, fanotify.FAN_PRE_ACCESS, inode)

    def completed(self, rows: Sequence[int]) -> Sequence[int]:
        """The ledger outlives agents."""
        return list(filter(self._linked()[0].ledger.was_readable, rows))

    def settled(self, rows: Sequence[int]) -> None:
        """The marker is gone or about to go, and it decides; of mappings those of the files by range."""
        self._windows.forget(rows)

    def leave(self, doubted: Sequence[int] = ()) -> None:
        """Disconnect; the keepers hold everything."""
        self._windows.leave()
        self._linked()[0].ledger.doubt(doubted)
        self._end(None)

    def abandon(self, errno: int) -> None:
        """Disconnect; the keepers refuse from now on. Noted first: a keeper that dies now leaves it to its standby."""
        self._windows.abandon()
        self._linked()[0].ledger.refusal = errno
        self._end(wire.pack(wire.ABANDON, errno))

    def disarm(self) -> None:
        """End the keepers; with the last descriptor of the group every mark is gone. Noted first, as in ``abandon``."""
        self._windows.disarm()
        if self._link is not None:
            self._link.ledger.disarm()
        self._end(wire.pack(wire.DISARM))

    def _end(self, last_word: bytes | None) -> None:
        if self._link is None:
            return
        with self._relink:
            self._ending = True
        self._ended.set()
        self._tell_answered()
        link, _ = self._linked()
        with contextlib.suppress(OSError):
            if last_word is not None:
                link.sock.send(last_word, socket.MSG_NOSIGNAL)
                keepers.await_end(link)
            link.sock.shutdown(socket.SHUT_RDWR)
        # Not closed but led nowhere: another thread may be about to answer, and must not meet a number used anew.
        nowhere = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
        for fd in (link.group, link.listener, self._complaints):
            os.dup2(nowhere, fd, inheritable=False)
        os.close(nowhere)
        if self._passage is not None:
            self._passage.close()


def _fault(packet: FaultPacket, keeper: int) -> Fault:
    span = None if packet.offset < 0 else (packet.offset, packet.length)
    ticket, intent = keeper << _NUMBER_BITS | packet.number, Intent(packet.intent)
    return Fault(ticket, packet.row, packet.handle, intent, Task(packet.tid, 0, ""), packet.since_ns, span)
