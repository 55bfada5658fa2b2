"""Mappings of a part of a file wait just for that part: who makes one show more is stopped, until that is there, too.

The programs of ``ebpf.growth`` stop the process, whoever lives, and enter the thread in a map that is pinned: it is the truth.
An agent that lives traces the thread at once, so that nobody's SIGCONT lets it go on, has what its mapping shows filled, and
continues the process. What cannot be had ends it (SIGKILL): no call is left that could fail, and zeros are no answer. So does
locked memory that is private and writable: the kernel has filled it with copies of what was not there.
While no agent lives the keeper traces (``warden``).

Not guaranteed: that nobody sees the stop (a shell may); that another thread which knows the place before mremap(2) has
returned, and looks there in that moment, sees no zeros; nor that a SIGCONT waits which comes between stop and trace.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import queue
import select
import signal
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from active_restore.ebpf import growth
from active_restore.ebpf.growth import Grown, Growth
from active_restore.errors import CapabilityMissing
from active_restore.intercept import stopped
from active_restore.intercept.tracer import LOOK_MS, Bell, Tracer, is_quiet, is_same
from active_restore.linux import bpffs
from active_restore.linux.files import BTRFS_MAGIC, filesystem_magic, generation_of
from active_restore.linux.mounts import superblock
from active_restore.linux.process import hurry, name_thread
from active_restore.model import TO_THE_END, Fault, Intent, Task, whole_folios
from active_restore.placeholder import open_inode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from active_restore.intercept.base import Territory
    from active_restore.intercept.ledger import Ledger
    from active_restore.model import Ranged

_log = logging.getLogger(__name__)
FIRST_TICKET = 1 << 61
"""Tickets of faults from here on (and below those of BPF) are of these."""


class _File(NamedTuple):
    row: int
    handle: bytes


@dataclass(slots=True)
class _Held:
    """A stopped thread. ``tickets``: what it waits for; ``traced``: by us, and not by somebody else."""

    grown: Grown
    tickets: set[int]
    traced: bool
    refused: bool = False
    killed: bool = False


def check() -> None:
    """Raise ``CapabilityMissing`` where mappings must wait to the end of their file."""
    pins = bpffs.windows(f"check_{os.getpid()}")
    _load(pins).close()
    growth.unpin(pins)


def _load(pins: Path) -> Growth:
    try:
        bpffs.mount()
    except OSError as error:
        raise CapabilityMissing(f"the BPF file system cannot be mounted ({error.strerror})") from error
    return Growth.loaded(pins)


def abandon(restore_id: str) -> None:
    """Without an agent: who is stopped ends, and so does whoever would be stopped."""
    pins = bpffs.windows(restore_id)
    if pins.is_dir():
        with contextlib.closing(Growth(pins)) as left:
            left.abandon(abandoned=True)
            for grown in left.grown():
                if is_same(grown):
                    _end(grown)
                left.conclude(grown)


class Windows:
    """Nothing before ``guard``. The ledger's ``windows`` says when mappings may wait for their part only."""

    def __init__(self) -> None:
        self._pins = bpffs.windows("")
        self._ledger: Ledger | None = None
        self._growth: Growth | None = None
        self._files: dict[tuple[int, int], _File] = {}
        self._keys: dict[int, tuple[int, int]] = {}
        self._tracer = Tracer()
        self._held: dict[int, _Held] = {}
        self._tickets = itertools.count(FIRST_TICKET)
        self._asked: dict[int, _Held] = {}
        self._answers: deque[tuple[int, int]] = deque()
        self._faults: queue.SimpleQueue[Fault | None] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lock = threading.Lock()
        self._ending = False
        self._threads: list[threading.Thread] = []

    def guard(self, files: Sequence[Ranged], passage: int, territory: Territory, ledger: Ledger) -> None:
        """Watch these, from ``serve`` on."""
        self._pins, self._ledger = bpffs.windows(territory.restore_id), ledger
        if not self._pins.is_dir():
            ledger.windows = False
        # On btrfs a file of another subvolume may have the number and the generation of ours, and its agent would let ours go.
        if files and filesystem_magic(f"/proc/self/fd/{passage}") != BTRFS_MAGIC and all(file.handle for file in files):
            there = superblock(territory.root)
            for file in files:
                self._identify(file, passage, there)

    def serve(self, on_fault: Callable[[Fault], None]) -> None:
        """In threads of our own; the programs load meanwhile, where they are not left by a dead agent."""
        if self._pins.is_dir():
            self._go(on_fault)
        elif self._files:
            self._start("windows-load", lambda: self._go(on_fault))

    def _identify(self, file: Ranged, passage: int, there: str) -> None:
        fd = open_inode(passage, file.handle)
        if fd is not None:
            try:
                key = (os.fstat(fd).st_ino, growth.which(there, generation_of(fd)))
            finally:
                os.close(fd)
            self._files[key] = _File(file.row, file.handle)
            self._keys[file.row] = key

    def _start(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _go(self, on_fault: Callable[[Fault], None]) -> None:
        try:
            found = Growth(self._pins) if self._pins.is_dir() else _load(self._pins)
            with self._lock:
                if self._ending:
                    return
                for key in self._files:
                    found.guard(*key)
                found.abandon(abandoned=False)
                self._growth = found
            self._start("windows-serve", lambda: self._serve(on_fault))
            self._start("windows", lambda: self._run(found))
        except (CapabilityMissing, OSError) as error:
            _log.info("mappings wait to the end of their file: %s", error)
            return
        if self._files and self._ledger is not None:
            self._ledger.windows = True

    def forget(self, rows: Iterable[int]) -> None:
        """These are whole."""
        if self._keys:
            with self._lock:
                for key in filter(None, (self._keys.pop(row, None) for row in rows)):
                    del self._files[key]
                    if self._growth is not None:
                        self._growth.forget(*key)

    def answer(self, tickets: Sequence[int], refusal: int) -> None:
        """What these faults wanted is there, or never will be."""
        if tickets:
            self._answers.extend((ticket, refusal) for ticket in tickets)
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    def leave(self) -> None:
        """The agent ends: who is held stays stopped. The kernel takes our traces away."""
        with self._lock:
            self._ending = True
        self._wake()
        self._faults.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def abandon(self) -> None:
        """The agent ends, and none will come: who is held, and would be, ends."""
        self.leave()
        if self._growth is not None:
            self._growth.abandon(abandoned=True)
            for grown in filter(is_same, self._growth.grown()):
                _end(grown)

    def disarm(self) -> None:
        """Nothing is left to guard."""
        self.leave()
        growth.unpin(self._pins)
        if self._growth is not None:
            for left in filter(is_same, self._growth.grown()):
                stopped.proceed(left.tgid)

    def _serve(self, on_fault: Callable[[Fault], None]) -> None:
        while (fault := self._faults.get()) is not None:
            try:
                on_fault(fault)
            except Exception:
                _log.exception("a mapping could not be filled")
                self.answer([fault.ticket], errno.EIO)

    def _run(self, found: Growth) -> None:
        """All that has to do with ptrace, which knows threads and not processes."""
        name_thread("windows")
        with contextlib.suppress(OSError):
            hurry()
        bell = Bell(found.ring)
        poll = select.poll()
        poll.register(found.ring, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while not self._ending:
            try:
                self._take_turn(found)
            except OSError:
                _log.exception("who is stopped could not be looked at")
            poll.poll(LOOK_MS if self._held or self._tracer else None)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            bell.empty()
        self._tracer.leave()

    def _take_turn(self, found: Growth) -> None:
        for grown in found.grown():
            if not is_same(grown):
                found.conclude(grown)
            elif self._is_new(grown):
                self._take_in(grown)
        for tid in self._tracer.look():
            if (ended := self._held.get(tid)) is not None:
                self._drop(found, ended)
        while self._answers:
            ticket, refusal = self._answers.popleft()
            if (held := self._asked.pop(ticket, None)) is not None:
                held.tickets.discard(ticket)
                held.refused = held.refused or bool(refusal)
        for held in list(self._held.values()):
            # Another one may trace it for a moment still: the keeper, or the agent that died.
            held.traced = held.traced or self._tracer.take(held.grown.tid, held.grown.tgid)
            if self._held.get(held.grown.tid) is held:
                self._let_go(found, held)

    def _take_in(self, grown: Grown) -> None:
        """Traced before anything else: then it does not matter who sends SIGCONT."""
        held = self._held[grown.tid] = _Held(grown, set(), self._tracer.take(grown.tid, grown.tgid), _is_spoilt(grown))
        if held.refused:
            return
        for file, intent, span in self._shown(grown):
            ticket = next(self._tickets)
            held.tickets.add(ticket)
            self._asked[ticket] = held
            task = Task(grown.tid, grown.tgid, _name(grown))
            self._faults.put(Fault(ticket, file.row, file.handle, intent, task, grown.since_ns, span))

    def _shown(self, grown: Grown) -> Iterator[tuple[_File, Intent, tuple[int, int]]]:
        """What its mapping shows; of all its mappings where that is not known."""
        with self._lock:
            files = dict(self._files)
        if grown.inode:
            file = files.get((grown.inode, grown.where))
            is_written = grown.flags & growth.VM_SHARED and grown.flags & growth.VM_MAYWRITE
            shown = grown.offset, grown.length
            if file is not None:
                yield file, *((Intent.MAP, whole_folios(*shown)) if is_written else (Intent.READ, shown))
            return
        try:
            with open(f"/proc/{grown.tgid}/maps", "rb") as lines:
                numbers = {int(line.split()[4]) for line in lines}
        except OSError:
            return
        for (number, _), file in files.items():
            if number in numbers:
                yield file, Intent.MAP, (0, TO_THE_END)

    def _let_go(self, found: Growth, held: _Held) -> None:
        """The process goes on when nobody of it waits any more, and not before it has stopped."""
        grown = held.grown
        if held.killed:
            return
        if held.refused:
            _log.warning("%s (%d) is killed: what its mapping shows cannot be had", _name(grown), grown.tgid)
            _end(grown)
            # Whom we trace nobody else is told of before we are.
            held.killed = held.traced
            if not held.traced:
                self._drop(found, held)
            return
        together = [one for one in self._held.values() if one.grown.tgid == grown.tgid]
        if any(one.tickets or (one.traced and not self._tracer.rests(one.grown.tid)) for one in together):
            return
        if not is_quiet(grown.tgid, growth.CALLS):
            return
        if any(one.tgid == grown.tgid and self._is_new(one) for one in found.grown()):
            # Its stop must not be taken away together with these.
            return
        if all(one.traced for one in together):
            stopped.proceed(grown.tgid)
        else:
            # Its tracer may show it the stop later.
            threading.Thread(target=stopped.resume_all, args=({grown.tgid},), daemon=True).start()
        for one in together:
            # Before the trace ends: until then it makes no new entry.
            self._drop(found, one)
            if one.traced:
                self._tracer.let_go(one.grown.tid)

    def _is_new(self, grown: Grown) -> bool:
        known = self._held.get(grown.tid)
        return known is None or known.grown != grown

    def _drop(self, found: Growth, held: _Held) -> None:
        self._held.pop(held.grown.tid, None)
        for ticket in held.tickets:
            self._asked.pop(ticket, None)
        found.conclude(held.grown)


def _is_spoilt(grown: Grown) -> bool:
    """Whether mremap(2) itself has written to its new pages (mlock(2), mlockall(2)): they are copies, of zeros maybe."""
    mine = growth.VM_LOCKED | growth.VM_WRITE
    return grown.flags & (mine | growth.VM_SHARED | growth.VM_LOCKONFAULT) == mine


def _name(grown: Grown) -> str:
    return grown.comm.rstrip(b"\0").decode(errors="replace")


def _end(grown: Grown) -> None:
    """SIGKILL; one that is gone is no error."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(grown.tgid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
