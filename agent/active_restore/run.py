"""One run of the agent over one target: the order of the steps, and what the control socket may ask meanwhile.

``work`` runs in one thread from plan to end. Placeholders are laid while an empty guard is armed already, become visible
only complete, and the guard leaves only when the last marker is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from array import array
from typing import TYPE_CHECKING

from active_restore.catalog import Catalog, State
from active_restore.config import NO_POLICY
from active_restore.errors import ActiveRestoreError, DiskFailed, TargetError, UsageError
from active_restore.intercept.base import Territory
from active_restore.intercept.choose import choose
from active_restore.linux.files import sync_filesystem
from active_restore.linux.notify import notify
from active_restore.linux.process import hurry, name_thread
from active_restore.overview import Parts, filled_in
from active_restore.predict.lane import PredictedLane
from active_restore.restore.background import Background, Hooks
from active_restore.restore.demand import Demand
from active_restore.restore.desk import Answers, Desk
from active_restore.restore.finish import sweep
from active_restore.restore.laying import Laying, Stopped, Telling
from active_restore.restore.limits import Limits
from active_restore.restore.progress import Done, Notice, Ready, Refused, Status
from active_restore.restore.ranges.choose import chosen
from active_restore.restore.ranges.lane import RangeLane
from active_restore.restore.shop import Rows, open_shop
from active_restore.restore.steering import Steering
from active_restore.restore.throttle.ticker import Counters, Ticker
from active_restore.settings.file import load
from active_restore.source.open import local_paths
from active_restore.source.reachable import await_reachable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from active_restore.config import LimitWindow, Policy
    from active_restore.intercept.base import Interceptor
    from active_restore.model import Fault, Problem
    from active_restore.restore.job import Job
    from active_restore.restore.layer_process import LayerProcess
    from active_restore.restore.progress import Phase, Reporter
    from active_restore.restore.shop import Workshop
    from active_restore.source.base import Source

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_POLL_SECONDS = 0.1
_MAX_WORKERS = 2


class Run:
    """``work`` once; ``stop`` from anywhere; ``control.server.Commands`` asks for the rest. ``layer``: until all is visible."""

    def __init__(self, job: Job, source: Source, layer: LayerProcess | None, reporter: Reporter, started: float) -> None:
        self._job = job
        self._layer = layer
        self._source = source
        self._reporter = reporter
        self._started = started
        self._phase: Phase = "planning"
        self._stopping = threading.Event()
        self._catalog = Catalog(job.state_dir / "catalog.sqlite")
        self._interceptor: Interceptor | None = None
        self._shop: Workshop | None = None
        self._desk: Desk | None = None
        self._demand: Demand | None = None
        self._background: Background | None = None
        self._predicted: PredictedLane | None = None
        self._ranges: RangeLane | None = None
        self._ticker: Ticker | None = None
        self._steering = Steering(job.state_dir, Limits(job.options.limit_bytes_per_s, job.options.limit_windows))
        self._threads: list[threading.Thread] = []
        self._problems = 0
        self._parted = False
        self._certain = True
        self._order = array("I")

    def work(self) -> Done | None:
        """Everything, from the plan to the last marker; ``None`` when stopped before the end."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._catalog.close)
            root = os.open(self._job.options.target, _DIRECTORY)
            stack.callback(os.close, root)
            telling = Telling(self._reporter, self._report, self._warn, self._stopping)
            laying = Laying(self._job, self._catalog, self._source, root, telling)
            try:
                interceptor = self._interceptor = self._to_guarded(laying)
                # Ours for longer than the interceptor's: what is still pending is settled after it has left.
                passage = os.dup(interceptor.passage())
                stack.callback(os.close, passage)
                return self._restore(laying, passage, interceptor)
            except Stopped:
                self._phase = "interrupted"
                return None

    def _to_guarded(self, laying: Laying) -> Interceptor:
        """Whatever the phase in which the last agent ended: a complete catalog and a guard over what is laid."""
        job = self._job
        interceptor = choose(job.options, job.restore_id)
        if job.phase in ("planning", "laying"):
            if interceptor.adopt(self._territory()):
                interceptor.disarm()
                interceptor = choose(job.options, job.restore_id)
            self._lay(laying, interceptor)
            laying.begin_life()
            return interceptor
        is_rebuilt = job.phase in ("lost", "forgotten")
        if is_rebuilt:
            laying.plan_again()
            self._job = laying.job
        for problem in self._catalog.problems():
            # The exit code is about the whole restore, not about what is left of it.
            self._report(problem)
        territory = self._territory()
        adopted = interceptor.adopt(territory)
        if not adopted:
            interceptor.arm(territory)
        moved = not (adopted and interceptor.unmoved)
        self._certain = not moved or laying.is_certain()
        if not self._certain:
            laying.look_again()
            self._job = laying.job
        laying.begin_life()
        if moved:
            interceptor.add(self._catalog.inodes(), None if is_rebuilt else self._catalog.handle)
            interceptor.laid()
        return interceptor

    def _territory(self) -> Territory:
        job = self._job
        rows = self._catalog.row_count()
        where = job.options.target, job.restore_id, job.marker_prefix, str(job.run_dir)
        return Territory(*where, rows, self._policy(), str(job.state_dir))

    def _policy(self) -> Policy:
        """Placeholders must be guarded, whatever somebody has written into the configuration since the restore began."""
        try:
            return load().policy.policy()
        except UsageError as error:
            self._warn(f"no policy is in force: {error}")
            return NO_POLICY

    def _lay(self, laying: Laying, interceptor: Interceptor) -> None:
        """Arm the empty guard, then read the snapshot and lay everything in the staging directory."""
        self._job.save()
        laying.take_back()
        snapshot = laying.choose()
        self._phase = "laying"
        self._job = laying.job = laying.job.in_phase("laying")
        assert self._layer is not None
        interceptor.arm(self._territory())
        try:
            laying.lay(snapshot, self._layer, interceptor.add, inode_numbers=interceptor.needs_inode_numbers)
            interceptor.laid()
        except BaseException as error:
            self._layer.close()
            interceptor.disarm()
            laying.take_back()
            if isinstance(error, OSError):
                raise TargetError(f"placeholders cannot be laid: {error.strerror}", "check the target's disk") from error
            raise
        self._job = laying.job = laying.job.in_phase("revealing")

    def _restore(self, laying: Laying, passage: int, interceptor: Interceptor) -> Done | None:
        """Serve faults until the end; whatever happens, the guard stays and none of our threads does."""
        shop = self._shop = self._open_shop(passage, interceptor)
        answers = Answers(interceptor.release, interceptor.refuse, interceptor.describe, interceptor.filled)
        options = self._job.options
        desk = self._desk = Desk(shop, answers, self._source, options.fault_timeout_s)
        lane = self._predicted = PredictedLane(shop, self._source.handover, _MAX_WORKERS, options.target)
        demand = self._demand = Demand(desk, lane.on_served)
        ranges = self._ranges = RangeLane(desk, interceptor.settled)
        files = chosen(self._job, self._catalog, self._source, passage)
        ranges.load(files, interceptor.hold_ranges, interceptor.ranges, lambda: interceptor.windows)
        self._start("settler", shop.settler.run)
        self._start("stalled", demand.retry_stalled)
        on_fault = ranges.before(demand.patience.on_fault)
        for number in range(interceptor.serve_threads):
            self._start(f"demand-{number}", lambda: _serve(interceptor, demand, on_fault))
        try:
            return self._go_on(laying, passage, interceptor, lane)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno != errno.EROFS:
                shop.settler.fail(error)  # Whoever was told: readers of what is not settled must wait, too.
            if not self._parted:
                self._part(lambda: interceptor.leave(shop.settler.doubtful), shop, demand)
            if isinstance(error, OSError):
                hint = f"check that disk; then: active-restore resume {options.target}"
                raise DiskFailed(f"the disk of {options.target} fails ({error.strerror})", hint) from error
            raise

    def _go_on(self, laying: Laying, passage: int, interceptor: Interceptor, lane: PredictedLane) -> Done | None:
        """Reveal, fill the rest, end."""
        shop, demand = self._shop, self._demand
        assert shop is not None
        assert demand is not None
        if self._job.phase == "revealing":
            if self._layer is not None and self._job.options.existing == "refuse":
                self._give_head_start(laying, passage, lane)
            laying.reveal()
        self._phase = "restoring"
        self._reporter.event(Ready(time.monotonic() - self._started))
        notify("READY=1")
        if self._layer is not None:
            # It has a directory that was deleted: the kernel would not let anybody make the file system read-only.
            self._layer.close()
        sync_filesystem(passage)
        self._job = self._job.in_phase("restoring")
        self._fill(shop, demand, interceptor, lane)
        return self._end(shop, interceptor, demand)

    def _give_head_start(self, laying: Laying, passage: int, lane: PredictedLane) -> None:
        with laying.staged(passage) as inside:
            lane.follow(self._job.options.order, self._source, inside)
            lane.give_head_start(self._source, self._job.options.head_start_s, self._stopping)

    def _open_shop(self, mount: int, interceptor: Interceptor) -> Workshop:
        # Of another state of the disk nobody knows what was complete.
        rows = Rows(interceptor.settled, interceptor.completed if self._certain else _none, interceptor.unfilled)
        shop, self._order = open_shop(mount, self._catalog, self._job.marker_prefix, rows, self._reporter)
        self._steering.begin(shop.board, self._warn)
        return shop

    def _fill(self, shop: Workshop, demand: Demand, interceptor: Interceptor, lane: PredictedLane) -> None:
        """Run the background until every row is concluded, or until we are stopped."""
        if not await_reachable(self._source, self._stopping, self._warn):
            return
        ranges = self._ranges
        assert ranges is not None
        hooks = Hooks(interceptor.settled, demand.note_refused)
        workers = self._job.options.workers or min(_MAX_WORKERS, os.cpu_count() or 1)
        background = self._background = Background(shop, self._source.handover, hooks, workers)
        background.queue.load(self._order)
        servers = [threading.Thread(target=background.run, args=(n,), name=f"worker-{n}") for n in range(workers)]
        counters = Counters(
            workers=lambda: background.pids() + lane.pids(),
            faults=lambda: shop.tally.faults,
            waiting=lambda: demand.awaited + ranges.awaited,
        )
        places = [self._job.options.target, *local_paths(self._source.url)]
        yields = self._job.options.throttle == "auto"
        lane.follow(self._job.options.order, self._source)
        lane.start(hooks)
        ranges.start(demand.note_refused, lane.ranges)
        with Ticker(shop.board, places, counters, self._steering.limits, yields=yields) as self._ticker:
            # The user may have set another one while it was made.
            self._ticker.limits = self._steering.limits
            for server in servers:
                server.start()
            while not self._stopping.is_set() and shop.is_open and any(server.is_alive() for server in servers):
                self._stopping.wait(_POLL_SECONDS)
                demand.rest()
                ranges.look()
                background.rouse()
            background.finish()
            lane.finish()
            for server in servers:
                server.join()
        demand.patience.look()
        ranges.look()

    def _end(self, shop: Workshop, interceptor: Interceptor, demand: Demand) -> Done:
        """Settle the rest; then disarm, or leave the guard to the next agent, or refuse what cannot be had."""
        if self._stopping.is_set():
            self._part(lambda: interceptor.leave(shop.settler.doubtful), shop, demand)
            raise Stopped
        shop.settler.flush()
        self._phase = "verifying"
        left = sweep(shop)
        if any(shop.board.state[row] != State.REFUSED for row in left):
            self._part(lambda: interceptor.leave(shop.settler.doubtful), shop, demand)
            raise DiskFailed(
                f"{len(left)} files could not be made durable ({getattr(shop.settler.failure, 'strerror', '?')})",
                "check the target's disk; then: active-restore resume",
            )
        if left:
            self._job = self._job.in_phase("refusing")
            self._part(lambda: interceptor.abandon(errno.EIO), shop, demand)
        else:
            self._part(interceptor.disarm, shop, demand)
        self._phase = "done"
        tally, seconds = shop.tally, time.monotonic() - self._started
        return Done(tally.files_done, tally.bytes_done, tally.faults, tally.refused + self._problems, seconds)

    def _part(self, farewell: Callable[[], None], shop: Workshop, demand: Demand) -> None:
        """Say how the guard goes on, then end our threads."""
        self._parted = True
        demand.stop()
        for other in (self._ranges, self._predicted):
            if other is not None:
                other.stop()
        farewell()
        shop.settler.close()
        for thread in self._threads:
            thread.join()
        shop.settler.give_back()
        demand.close()
        if self._ranges is not None:
            self._ranges.close()
        if self._desk is not None:
            self._desk.close()
        if self._predicted is not None:
            self._predicted.close()

    def _start(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name)
        thread.start()
        self._threads.append(thread)

    def _report(self, problem: Problem) -> None:
        self._problems += 1
        self._reporter.event(Refused(problem.path, problem.errno, problem.detail))

    def _warn(self, text: str) -> None:
        self._reporter.event(Notice(text))

    def forget(self) -> None:
        """The restore is over: remove state, sockets and the target's record, unless refused files are still guarded."""
        if self._job.phase != "refusing":
            self._job.forget()

    def forget_failure(self) -> None:
        """The restore failed: where nothing had become visible yet, nothing is left of it."""
        if self._job.phase in ("planning", "laying"):
            self._job.forget()

    def stop(self) -> None:
        """End soon, resumable."""
        self._stopping.set()
        if self._shop is not None:
            self._shop.board.stopping = True
        if self._background is not None:
            self._background.wake()

    def pause(self) -> None:
        """Stop the background lane; demand goes on."""
        self._shop_now().board.paused = True
        self._steering.pause(paused=True)

    def proceed(self) -> None:
        """Let the background lane go on."""
        self._shop_now().board.paused = False
        self._steering.pause(paused=False)

    def limit(self, bytes_per_s: int, windows: Sequence[LimitWindow] = ()) -> None:
        """Limit the background lane; 0 for no limit. In its hours a window's limit holds instead."""
        self._steering.limit(Limits(bytes_per_s, tuple(windows)))
        if self._ticker is not None:
            self._ticker.limits = self._steering.limits
        self._shop_now().board.rate_bytes_per_s = self._steering.limits.now()

    def promote(self, paths: Sequence[bytes]) -> int:
        """Bring files forward; how many were still missing."""
        shop = self._shop_now()
        rows = [row for path in paths for row in shop.catalog.rows_below(path)]
        missing = [row for row in rows if shop.board.state[row] == State.LAID]
        if self._background is not None:
            self._background.promote(missing)
        return len(missing) + (self._ranges.promote(rows) if self._ranges else 0)

    def _shop_now(self) -> Workshop:
        if self._shop is None:
            raise ActiveRestoreError("the restore is still being planned", "try again in a moment")
        return self._shop

    def status(self) -> Status:
        """The state at this moment."""
        held = self._interceptor
        name, reason = (held.name, held.reason) if held else ("", "")
        seconds = time.monotonic() - self._started
        options = self._job.options
        empty = Status(self._phase, options.target, options.source, options.snapshot, name, seconds, interceptor_reason=reason)
        if self._shop is None or self._desk is None or self._demand is None or self._ranges is None:
            return empty
        parts = Parts(self._shop, self._desk, self._demand, self._ranges, self._predicted, self._ticker)
        return filled_in(empty, parts, self._problems)


def _none(_: Sequence[int]) -> Sequence[int]:
    return ()


def _serve(interceptor: Interceptor, demand: Demand, on_fault: Callable[[Fault], None]) -> None:
    """One demand thread: tasks wait for it, so it goes first."""
    name_thread("ar-demand")
    with contextlib.suppress(OSError):
        hurry()
    demand.warm_up()
    interceptor.serve(on_fault)
