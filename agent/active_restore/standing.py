"""How a restore stands at one moment, put together from those who know a part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from active_restore.restore.progress import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from active_restore.config import RestoreOptions
    from active_restore.restore.demand import Demand
    from active_restore.restore.desk import Desk
    from active_restore.restore.progress import Phase, PredictionCount, Throttled
    from active_restore.restore.ranges.lane import RangeLane
    from active_restore.restore.shop import Workshop


class Held(NamedTuple):
    """What holds tasks, and why it does; empty while that is not known."""

    name: str = ""
    reason: str = ""


class Moment(NamedTuple):
    """``seconds`` since the beginning of this run; ``problems``: entries that could not be laid."""

    phase: Phase
    held_by: Held
    seconds: float
    problems: int


class Parts(NamedTuple):
    """Who is at work."""

    shop: Workshop
    desk: Desk
    demand: Demand
    ranges: RangeLane


def planning(options: RestoreOptions, moment: Moment) -> Status:
    """Nobody is at work yet."""
    return Status(
        phase=moment.phase,
        target=options.target,
        source=options.source,
        snapshot=options.snapshot,
        interceptor=moment.held_by.name,
        interceptor_reason=moment.held_by.reason,
        seconds=moment.seconds,
    )


def restoring(
    options: RestoreOptions, moment: Moment, parts: Parts, predictions: Mapping[str, PredictionCount], throttle: Throttled
) -> Status:
    """The whole."""
    shop, desk, demand, ranges = parts
    tally = shop.tally
    lanes = tally.lanes()
    by_range = ranges.count()
    amount = tally.amount(shop.board, by_range.bytes_present)
    return Status(
        phase=moment.phase,
        target=options.target,
        source=options.source,
        snapshot=options.snapshot,
        interceptor=moment.held_by.name,
        interceptor_reason=moment.held_by.reason,
        seconds=moment.seconds,
        files_total=tally.files_total,
        bytes_total=tally.bytes_total,
        files_done=tally.files_done,
        bytes_done=amount.done,
        bytes_underway=amount.underway,
        refused=tally.refused + moment.problems,
        faults=tally.faults,
        rate_bytes_per_s=amount.rate,
        eta_s=amount.eta_s,
        paused=shop.board.paused,
        limit_bytes_per_s=shop.board.rate_bytes_per_s,
        source_unreachable_s=desk.unreachable_s,
        lanes=lanes,
        waiting=(*demand.waiting(), *ranges.waiting()),
        ranges=by_range,
        predictions=dict(predictions),
        throttle=throttle,
    )
