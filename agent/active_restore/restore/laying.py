"""From a snapshot to a visible, guarded tree of placeholders: plan, lay in the staging directory, reveal.

Everything up to ``reveal`` can be taken back without a trace; from ``reveal`` on every step can be repeated.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from active_restore.catalog import Catalog, State
from active_restore.linux.files import sync_filesystem
from active_restore.marker import EPOCH, MARKER
from active_restore.model import Problem
from active_restore.placeholder import make_staging, remove_staging, staging_name
from active_restore.restore import epoch, plan, target
from active_restore.restore.existing import ExistingTree, dress
from active_restore.restore.layer_process import Entry, LayerProcess, Outcome
from active_restore.restore.progress import Planned
from active_restore.restore.rebuild import rebuild
from active_restore.restore.reveal import reveal

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator

    from active_restore.model import Node
    from active_restore.restore.job import Job
    from active_restore.restore.progress import Reporter
    from active_restore.source.base import SnapshotInfo, Source

_BATCH_ENTRIES = 2000
_Item = TypeVar("_Item")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Stopped(Exception):
    """The user wants the agent to end."""


class Telling(NamedTuple):
    """How laying speaks and listens: problems and warnings go out, ``stopping`` comes in."""

    reporter: Reporter
    problem: Callable[[Problem], None]
    warn: Callable[[str], None]
    stopping: threading.Event


class Laying:
    """The steps for one job. ``root`` is a descriptor of the target directory."""

    def __init__(self, job: Job, catalog: Catalog, source: Source, root: int, telling: Telling) -> None:
        self.job = job
        self._catalog = catalog
        self._source = source
        self._root = root
        self._telling = telling

    def choose(self) -> SnapshotInfo:
        """Which snapshot it is, from now on and after every interruption. Raises ``SnapshotError``."""
        snapshot = self._source.select(self.job.options.snapshot)
        self.job = self.job.with_snapshot(snapshot.id)
        return snapshot

    def plan_again(self) -> None:
        """The state was lost: rows are the same for the same snapshot, so the markers tell what is left."""
        options = self.job.options
        self._catalog.clear()
        nodes = plan.selected(self._source, self.choose(), options)
        rebuild(
            self._catalog,
            options.target,
            self.job.marker_prefix,
            nodes,
            self._source.order_key,
            immutable=self._source.immutable,
        )
        self._catalog.note_rebuilt()
        self.job = self.job.in_phase("revealing" if self.job.phase in ("lost", "revealing") else "restoring")

    def is_certain(self) -> bool:
        """Whether what the catalog says of settled files is true of this disk."""
        return epoch.is_as_far(self._catalog, self._root)

    def look_again(self) -> None:
        """The power failed, or the target was put back to an older state: let the catalog say what the disk does."""
        if self._catalog.rebuilt:
            # It does not have the rows that were settled when it was made.
            self.plan_again()
        else:
            epoch.look_again(self._catalog, self._root, self.job.marker_prefix)

    def begin_life(self) -> None:
        """From now on files are settled by us."""
        epoch.begin(self._catalog, self._root)

    def lay(
        self,
        snapshot: SnapshotInfo,
        process: LayerProcess,
        add: Callable[[list[tuple[int, int]]], None],
        *,
        inode_numbers: bool,
    ) -> None:
        """Create everything, hidden and durable. ``add`` registers ``(row, inode number)`` with the guard.

        One pass: entries are laid while the snapshot is read. Raises ``NoSpace`` as soon as the room cannot suffice.
        """
        options = self.job.options
        self._catalog.clear()
        staging = make_staging(options.target, self.job.restore_id)
        outcome = Outcome(add, self._telling.problem, self._telling.warn)
        process.begin(self._catalog.file_path, staging, self.job.marker_prefix, outcome, inode_numbers=inode_numbers)
        with contextlib.ExitStack() as stack:
            keeps: Callable[[Node], bool] = _keeps_nothing
            if options.existing != "refuse":
                reader = stack.enter_context(contextlib.closing(self._source.reader()))
                keeps = ExistingTree(self._root, options.existing, reader).keeps
            counts = self._send(plan.Plan(keeps), snapshot, process)
        process.finish()
        self._catalog.end_plan(counts.entries)
        sync_filesystem(self._root)
        self._telling.reporter.event(Planned(counts.files, counts.bytes, counts.entries, snapshot.id))

    def _send(self, counted: plan.Plan, snapshot: SnapshotInfo, process: LayerProcess) -> plan.Counts:
        room = target.Room(self.job.options.target)
        order = self._source.order_key
        batch: list[Entry] = []
        for item in self._until_stopped(counted.number(plan.selected(self._source, snapshot, self.job.options))):
            if isinstance(item, Problem):
                self._tell(item)
                continue
            row, node, kept = item
            batch.append(Entry(row, node, kept, order(node.content) if node.content else 0))
            if len(batch) >= _BATCH_ENTRIES:
                room.check(counted.counts.entries, counted.counts.room_bytes)
                process.send(batch)
                batch = []
        room.check(counted.counts.entries, counted.counts.room_bytes)
        process.send(batch)
        return counted.counts

    def _tell(self, problem: Problem) -> None:
        self._catalog.add_problem(problem)
        self._telling.problem(problem)

    def take_back(self) -> None:
        """Nothing was visible yet: remove what was laid."""
        remove_staging(self.job.options.target, self.job.restore_id)

    @contextlib.contextmanager
    def staged(self, passage: int) -> Iterator[int]:
        """What was laid, before it is revealed: a directory by the interceptor's ``passage``."""
        inside = os.open(staging_name(self.job.restore_id), _DIRECTORY, dir_fd=passage)
        try:
            yield inside
        finally:
            os.close(inside)

    def reveal(self) -> None:
        """Make it visible, then give kept files and the root the snapshot's metadata."""
        name = staging_name(self.job.restore_id)
        # Not there: the last agent came as far as this, but maybe not further.
        with contextlib.suppress(FileNotFoundError):
            staging = os.open(name, _DIRECTORY, dir_fd=self._root)
            try:
                for problem in reveal(staging, self._root):
                    self._tell(problem)
                    self._catalog.set_states(self._catalog.rows_below(problem.path), State.GONE)
            finally:
                os.close(staging)
            shutil.rmtree(name, dir_fd=self._root)
        for node in self._catalog.kept():
            with contextlib.suppress(OSError):
                dress(self._root, node)
        self._dress_root()

    def _dress_root(self) -> None:
        node = self._catalog.root()
        if node is None:
            return
        os.fchown(self._root, node.uid, node.gid)
        os.fchmod(self._root, node.mode)
        kept = {os.fsdecode(key) for key, _ in node.xattrs}
        for name in {"system.posix_acl_default", "system.posix_acl_access"} - kept:
            with contextlib.suppress(OSError):
                os.removexattr(self._root, name)
        for key, value in node.xattrs:
            # The backup of a target that was half restored has its records: ours are others.
            if os.fsdecode(key) not in (MARKER, EPOCH):
                with contextlib.suppress(OSError):
                    os.setxattr(self._root, key, value)
        os.utime(self._root, ns=(node.atime_ns, node.mtime_ns))

    def _until_stopped(self, items: Iterable[_Item]) -> Iterator[_Item]:
        for item in items:
            if self._telling.stopping.is_set():
                raise Stopped
            yield item


def _keeps_nothing(_: Node) -> bool:
    return False
