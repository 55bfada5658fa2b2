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
from active_restore.model import Problem
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
    from active_restore.source.base import Source

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

    def plan(self) -> None:
        """Read the snapshot into the catalog. Raises ``NoSpace`` before anything is touched."""
        options = self.job.options
        snapshot = self._source.select(options.snapshot)
        self.job = self.job.with_snapshot(snapshot.id)
        keeps: Callable[[Node], bool] = _keeps_nothing
        with contextlib.ExitStack() as stack:
            if options.existing != "refuse":
                reader = stack.enter_context(contextlib.closing(self._source.reader()))
                keeps = ExistingTree(self._root, options.existing, reader).keeps
            nodes = self._until_stopped(plan.selected(self._source, snapshot, options))
            counts = plan.plan(self._catalog, nodes, keeps)
        target.check_space(options.target, counts.entries, counts.room_bytes)
        self._telling.reporter.event(Planned(counts.files, counts.bytes, counts.entries, snapshot.id))
        for problem in self._catalog.problems():
            self._telling.problem(problem)

    def plan_again(self) -> None:
        """The state was lost: rows are the same for the same snapshot, so the markers tell what is left."""
        options = self.job.options
        snapshot = self._source.select(options.snapshot)
        plan.plan(self._catalog, plan.selected(self._source, snapshot, options), _keeps_nothing)
        rebuild(self._catalog, options.target, self.job.marker_prefix, self._source.order_key)
        self.job = self.job.in_phase("revealing")

    def lay(self, add: Callable[[Iterable[tuple[int, int]]], None], *, inode_numbers: bool) -> None:
        """Create everything, hidden and durable. ``add`` registers ``(row, inode number)`` with the guard."""
        self.job.mark_target()
        staging = make_staging(self.job.options.target, self.job.restore_id)
        layer = Layer(staging, self.job.marker_prefix, self._telling.warn, inode_numbers=inode_numbers)
        with contextlib.closing(layer):
            _in_own_thread(lambda: self._create(layer, add))
        sync_filesystem(self._root)

    def _create(self, layer: Layer, add: Callable[[Iterable[tuple[int, int]]], None]) -> None:
        batch: list[Laid] = []
        for item in layer.lay(self._until_stopped(self._catalog.nodes())):
            if isinstance(item, Problem):
                self._catalog.add_problem(item)
                self._telling.problem(item)
                continue
            batch.append(item)
            if len(batch) >= _BATCH_FILES:
                self._register(batch, add)
                batch = []
        self._register(batch, add)
        layer.finish_directories(self._catalog.nodes_backwards())

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
                self._catalog.add_problem(problem)
                self._telling.problem(problem)
                self._catalog.set_states(self._catalog.rows_below(problem.path), State.GONE)
        finally:
            os.close(staging)
        shutil.rmtree(name, dir_fd=self._root)
        for node in self._catalog.kept():
            with contextlib.suppress(OSError):
                dress(self._root, node)
        self._dress_root()

    def _dress_root(self) -> None:
        node = self._catalog.node(0)
        if node is None or node.path:
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
