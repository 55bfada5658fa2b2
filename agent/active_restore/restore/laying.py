"""From a snapshot to a visible, guarded tree of placeholders: plan, lay in the staging directory, reveal.

Everything up to ``reveal`` can be taken back without a trace; from ``reveal`` on every step can be repeated.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from active_restore.catalog import Catalog, State
from active_restore.linux.files import sync_filesystem
from active_restore.model import Kind, Problem
from active_restore.placeholder import Laid, Layer, make_staging, remove_staging, staging_name
from active_restore.restore import plan, target
from active_restore.restore.existing import ExistingTree, dress
from active_restore.restore.progress import Planned
from active_restore.restore.rebuild import rebuild
from active_restore.restore.reveal import reveal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from active_restore.model import Node
    from active_restore.restore.job import Job
    from active_restore.restore.progress import Reporter
    from active_restore.source.base import SnapshotInfo, Source

_BATCH_FILES = 10_000
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
        rebuild(self._catalog, options.target, self.job.marker_prefix, nodes, self._source.order_key)
        self.job = self.job.in_phase("revealing")

    def lay(self, snapshot: SnapshotInfo, add: Callable[[Iterable[tuple[int, int]]], None], *, inode_numbers: bool) -> None:
        """Create everything, hidden and durable. ``add`` registers ``(row, inode number)`` with the guard.

        One pass: entries are laid while the snapshot is read. Raises ``NoSpace`` as soon as the room cannot suffice.
        """
        self._catalog.clear()
        self.job.mark_target()
        staging = make_staging(self.job.options.target, self.job.restore_id)
        layer = Layer(staging, self.job.marker_prefix, self._telling.warn, inode_numbers=inode_numbers)
        with contextlib.ExitStack() as stack:
            stack.callback(layer.close)
            keeps: Callable[[Node], bool] = _keeps_nothing
            if self.job.options.existing != "refuse":
                reader = stack.enter_context(contextlib.closing(self._source.reader()))
                keeps = ExistingTree(self._root, self.job.options.existing, reader).keeps
            counted = plan.Plan(keeps)
            _in_own_thread(lambda: self._create(layer, counted, snapshot, add))
        counts = counted.counts
        sync_filesystem(self._root)
        self._telling.reporter.event(Planned(counts.files, counts.bytes, counts.entries, snapshot.id))

    def _create(
        self, layer: Layer, counted: plan.Plan, snapshot: SnapshotInfo, add: Callable[[Iterable[tuple[int, int]]], None]
    ) -> None:
        room = target.Room(self.job.options.target)
        batch: list[Laid] = []
        for item in layer.lay(self._to_lay(counted, snapshot)):
            if isinstance(item, Problem):
                self._tell(item)
                continue
            batch.append(item)
            if len(batch) >= _BATCH_FILES:
                room.check(counted.counts.entries, counted.counts.room_bytes)
                self._register(batch, add)
                batch = []
        room.check(counted.counts.entries, counted.counts.room_bytes)
        self._register(batch, add)
        self._catalog.end_plan(counted.counts.entries)
        layer.finish_directories(self._catalog.directories_backwards())

    def _to_lay(self, counted: plan.Plan, snapshot: SnapshotInfo) -> Iterator[tuple[int, Node]]:
        """The entries that are not there yet; what the end needs is remembered on the way."""
        remembered: list[tuple[int, Node, bool]] = []
        for item in self._until_stopped(counted.number(plan.selected(self._source, snapshot, self.job.options))):
            if isinstance(item, Problem):
                self._tell(item)
                continue
            row, node, kept = item
            if kept or node.kind is Kind.DIR:
                remembered.append(item)
                if len(remembered) >= _BATCH_FILES:
                    self._catalog.add_nodes(remembered)
                    remembered = []
            if not kept:
                yield row, node
        self._catalog.add_nodes(remembered)

    def _tell(self, problem: Problem) -> None:
        self._catalog.add_problem(problem)
        self._telling.problem(problem)

    def _register(self, batch: list[Laid], add: Callable[[Iterable[tuple[int, int]]], None]) -> None:
        order = self._source.order_key
        self._catalog.add_files((item.file, item.inode, order(item.file.ref.content)) for item in batch)
        add((item.file.row, item.inode) for item in batch)

    def take_back(self) -> None:
        """Nothing was visible yet: remove what was laid."""
        remove_staging(self.job.options.target, self.job.restore_id)

    def reveal(self) -> None:
        """Make it visible, then give kept files and the root the snapshot's metadata."""
        name = staging_name(self.job.restore_id)
        try:
            staging = os.open(name, _DIRECTORY, dir_fd=self._root)
        except FileNotFoundError:
            return
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
        for key, value in node.xattrs:
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


def _in_own_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread that may change its working directory and umask for itself; its exception is raised here."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="lay")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
