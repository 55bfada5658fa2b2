"""The interface of every interceptor; the contract suite in tests/intercept runs against each implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from active_restore.config import NO_POLICY, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from active_restore.model import Fault, Gate, Ranged, Task


@dataclass(frozen=True, slots=True)
class Territory:
    """Where an interceptor works. ``root`` is the target directory, ``marker_prefix`` what markers of this restore begin
    with (``placeholder.marker_prefix``), ``run_dir`` a directory for sockets and pins that lives until the next reboot;
    ``rows`` is how many rows the catalog has, 0 before it is known; ``policy`` says who is not served at once; ``state_dir`` is
    where the agent keeps files of its own besides.
    """

    root: str
    restore_id: str
    marker_prefix: bytes
    run_dir: str
    rows: int
    policy: Policy = NO_POLICY
    state_dir: str = ""


class Beside(NamedTuple):
    """A fanotify guard on the same file system: the process that holds it, or 0, and its passage."""

    pid: int
    passage: int


class Interceptor(Protocol):
    """Life: ``arm``, ``add`` (any number of times), ``laid``, ``serve`` in ``serve_threads`` threads, ``disarm``.

    After a crash of the agent a new one calls ``adopt`` instead of ``arm`` ... ``laid`` and gets every wait again.
    """

    @property
    def name(self) -> str:
        """Who holds tasks; known after ``arm`` or ``adopt``, as the next two are."""

    @property
    def reason(self) -> str:
        """Why it is this one, for people; empty where there is nothing to say. Known when ``name`` is."""

    @property
    def serve_threads(self) -> int:
        """How many threads must ``serve``."""

    @property
    def needs_inode_numbers(self) -> bool:
        """Whether ``add`` looks at inode numbers (0 is passed where it does not, or where they are not known)."""

    def arm(self, territory: Territory) -> None:
        """Start to guard; there are no placeholders yet. Raises ``CapabilityMissing``, ``TargetError`` or ``Busy``."""

    def add(self, inodes: Iterable[tuple[int, int]], handle_of: Callable[[int], bytes] | None = None) -> None:
        """Guard these ``(row, inode number)`` pairs; called before they become visible.

        ``handle_of`` gives the file handle of a row where a number may be another restore's by now: then its marker is
        looked at. ``None``: they were made just now, or seen with their markers.
        """

    def laid(self) -> None:
        """Everything was added and is about to become visible."""

    def adopt(self, territory: Territory) -> bool:
        """Take over what a dead agent left; ``False`` where nothing is left (then ``arm``, ``add`` and ``laid`` follow)."""

    @property
    def unmoved(self) -> bool:
        """After ``adopt``: whether the file system is still mounted as it was when the dead agent left it.

        Where it was unmounted meanwhile, it may be another state of that disk: nobody goes on before its file was filled
        again, and ``add`` tells of every placeholder once more.
        """

    @property
    def ranges(self) -> str:
        """What sees accesses to ranges of files, for people; empty where nothing does. Known after ``arm`` or ``adopt``."""

    @property
    def windows(self) -> bool:
        """Whether who maps a part of such a file waits just for that part; it may become so some time after ``serve`` began."""

    def hold_ranges(self, files: Sequence[Ranged]) -> list[tuple[memoryview, bool]]:
        """From now on who opens these goes on at once and faults by range; after ``laid``, before ``serve``.

        Gives, for the first of them or for all, the memory of its ``presence.Presence``, and whether that is new: a dead
        agent's is found again as it was. Who accesses pages that are there is not told of, the first writer excepted.
        """

    def serve(self, on_fault: Callable[[Fault], None]) -> None:
        """Deliver faults in this thread until ``disarm`` or ``leave``. ``on_fault`` may take long and must not raise."""

    def release(self, row: int, gate: Gate, faults: Sequence[Fault]) -> None:
        """Open the gate of an inode and let these waiting tasks go on. Idempotent; tasks that are gone are ignored."""

    def refuse(self, row: int, errno: int, faults: Sequence[Fault]) -> None:
        """Let these waiting tasks go on with an error; the placeholder stays guarded."""

    def filled(self, inode: int) -> None:
        """The content behind this descriptor is complete, its marker still there: readers need not be asked about it any more.

        Told before ``release``, and only where it is cheap to tell.
        """

    def unfilled(self, inode: int) -> None:
        """Takes ``filled`` back: this file is about to be filled again, so whoever truncates it must be held once more."""

    def completed(self, rows: Sequence[int]) -> Sequence[int]:
        """After ``adopt``: which of these had their gate opened by an agent that did not live to settle them."""

    def settled(self, rows: Sequence[int]) -> None:
        """These are no placeholders any more (or their inodes are gone), and nobody was told of a fault of theirs."""

    def passage(self) -> int:
        """A descriptor of the target's root, the interceptor's until its end: who opens from there, by handle, is not held.

        Call it after ``arm`` or ``adopt``.
        """

    def describe(self, fault: Fault) -> Task:
        """Who waits or has just been let go, for people; call it before other faults of this thread are served."""

    def leave(self, doubted: Sequence[int] = ()) -> None:
        """The agent ends but the guard stays: tasks wait for the next one, at ``doubted`` rows even if they were let go on."""

    def abandon(self, errno: int) -> None:
        """The agent ends and the guard stays: every access to a placeholder is refused with ``errno``."""

    def disarm(self) -> None:
        """No placeholder is left: release whoever still waits, end every hook, leave no trace."""
