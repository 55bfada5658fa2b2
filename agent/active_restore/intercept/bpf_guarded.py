"""BPF for every task whose call can be restarted, and a fanotify guard beside it for those whose cannot.

The guard's hook lies behind ours in the same open: it sees only what BPF lets pass. That are files which are no
placeholders (each once), and the odd contexts of design section 9: io_uring, kernel threads, usermode helpers, PID 1, tasks
traced by others, tasks with a handler for SIGCONT. Without a living guard these get EAGAIN.
Where the programs do not load and nobody insists on them, the guard holds everybody.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

from active_restore.errors import CapabilityMissing, TargetError
from active_restore.intercept.base import Beside
from active_restore.intercept.bpf_lsm import FIRST_TICKET, BpfInterceptor
from active_restore.intercept.fanotify import FanotifyInterceptor
from active_restore.linux import bpffs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from active_restore.config import Hold
    from active_restore.intercept.base import Interceptor, Territory
    from active_restore.model import Fault, Gate, Ranged, Task

_log = logging.getLogger(__name__)


class GuardedBpfInterceptor:
    """See ``intercept.base.Interceptor`` for what each method promises."""

    def __init__(self, hold: Hold = "ptrace", *, required: bool, by_range: bool = False) -> None:
        self.reason = ""
        self._required = required
        self._by_range = by_range
        self._guard = FanotifyInterceptor()
        self._bpf: BpfInterceptor | None = BpfInterceptor(hold=hold, beside=self._beside)
        self._served = itertools.count()
        self.unmoved = False

    def _beside(self) -> Beside:
        return Beside(self._guard.keeper_pid, self._guard.passage())

    @property
    def name(self) -> str:
        """Who holds most tasks."""
        return self._both()[0].name

    @property
    def needs_inode_numbers(self) -> bool:
        """The programs go by them."""
        return self._bpf is not None

    @property
    def serve_threads(self) -> int:
        """Those of both."""
        return sum(each.serve_threads for each in self._both())

    @property
    def ranges(self) -> str:
        """The guard's where its kernel has them: it sees every context. Else those of the programs."""
        return self._guard.ranges or (self._bpf.ranges if self._bpf is not None else "")

    @property
    def windows(self) -> bool:
        """Those of whoever holds accesses to ranges."""
        return self._guard.windows if self._guard.ranges or self._bpf is None else self._bpf.windows

    def hold_ranges(self, files: Sequence[Ranged]) -> list[tuple[memoryview, bool]]:
        """The guard judges who opens them; their accesses are held by whoever sees ranges."""
        if self._bpf is None:
            return self._guard.hold_ranges(files)
        if self._guard.ranges:
            held = self._guard.hold_ranges(files)
            self._bpf.settled([file.row for file in files[: len(held)]])
            return held
        if not self._bpf.ranges:
            return []
        return self._bpf.hold_ranges(files[: len(self._guard.pass_opens(files))])

    def _both(self) -> list[Interceptor]:
        return [self._guard] if self._bpf is None else [self._bpf, self._guard]

    def arm(self, territory: Territory) -> None:
        """The guard first: the programs trust it from their first moment."""
        assert self._bpf is not None
        self._guard.arm(territory)
        self._bpf.by_range = self._by_range and not self._guard.ranges
        try:
            self._bpf.arm(territory)
        except (CapabilityMissing, TargetError) as error:
            if self._required:
                self._guard.disarm()
                raise
            _log.warning("BPF cannot be used, fanotify holds tasks: %s", error)
            self._bpf, self.reason = None, _said(error)
        except BaseException:
            self._guard.disarm()
            raise

    def add(self, inodes: Iterable[tuple[int, int]], handle_of: Callable[[int], bytes] | None = None) -> None:
        """The guard goes by markers and needs no telling."""
        if self._bpf is not None:
            self._bpf.add(inodes, handle_of)

    def laid(self) -> None:
        """Both."""
        for each in self._both():
            each.laid()

    def adopt(self, territory: Territory) -> bool:
        """A missing guard is put back while the programs hold everybody; where those are missing, the guard goes on alone."""
        assert self._bpf is not None
        is_guarded = self._guard.adopt(territory)
        # Where every keeper is dead, nobody knows.
        self.unmoved = is_guarded and self._guard.unmoved
        if not bpffs.pins(territory.restore_id).is_dir():
            if is_guarded:
                self._bpf, self.reason = None, "the last agent left a guard without programs"
            return is_guarded
        if not is_guarded:
            self._guard.arm(territory)
            self._guard.laid()
        if not self._bpf.adopt(territory):
            self._bpf, self.reason = None, "its file system was mounted from another device since"
        return True

    def serve(self, on_fault: Callable[[Fault], None]) -> None:
        """The first threads serve BPF, the later ones the guard."""
        first = self._both()[0]
        serving = first if next(self._served) < first.serve_threads else self._guard
        serving.serve(on_fault)

    def release(self, row: int, gate: Gate, faults: Sequence[Fault]) -> None:
        """Each opens its gate and answers its own."""
        ours, theirs = _split(faults)
        self._guard.release(row, gate, theirs)
        if self._bpf is not None:
            self._bpf.release(row, gate, ours)

    def refuse(self, row: int, errno: int, faults: Sequence[Fault]) -> None:
        """Each answers its own."""
        ours, theirs = _split(faults)
        if self._bpf is not None:
            self._bpf.refuse(row, errno, ours)
        self._guard.refuse(row, errno, theirs)

    def filled(self, inode: int) -> None:
        """Only the guard would ask again."""
        self._guard.filled(inode)

    def unfilled(self, inode: int) -> None:
        """As above."""
        self._guard.unfilled(inode)

    def completed(self, rows: Sequence[int]) -> Sequence[int]:
        """What only BPF let readers into is held from writers still, and may be filled again."""
        return self._guard.completed(rows)

    def settled(self, rows: Sequence[int]) -> None:
        """The guard goes by markers."""
        if self._bpf is not None:
            self._bpf.settled(rows)

    def passage(self) -> int:
        """One mount for both."""
        return self._guard.passage()

    def describe(self, fault: Fault) -> Task:
        """Each knows its own."""
        return (self._both()[0] if fault.ticket >= FIRST_TICKET else self._guard).describe(fault)

    def leave(self, doubted: Sequence[int] = ()) -> None:
        """The keepers go on guarding."""
        for each in self._both():
            each.leave(doubted)

    def abandon(self, errno: int) -> None:
        """Both refuse from now on."""
        for each in self._both():
            each.abandon(errno)

    def disarm(self) -> None:
        """BPF first: while its hooks are there, they may lean on the guard."""
        for each in self._both():
            each.disarm()


def _said(error: Exception) -> str:
    return str(error).rstrip(".")


def _split(faults: Sequence[Fault]) -> tuple[list[Fault], list[Fault]]:
    """(faults of BPF, faults of the guard)."""
    ours = [fault for fault in faults if fault.ticket >= FIRST_TICKET]
    return ours, [fault for fault in faults if fault.ticket < FIRST_TICKET]
