"""What ``status`` says of a restore whose parts all stand: counted where each of them counts, put together here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from active_restore.restore.progress import Throttled

if TYPE_CHECKING:
    from active_restore.predict.lane import PredictedLane
    from active_restore.restore.demand import Demand
    from active_restore.restore.desk import Desk
    from active_restore.restore.progress import Status
    from active_restore.restore.ranges.lane import RangeLane
    from active_restore.restore.shop import Workshop
    from active_restore.restore.throttle.ticker import Ticker


class Parts(NamedTuple):
    """Whoever knows a part of it."""

    shop: Workshop
    desk: Desk
    demand: Demand
    ranges: RangeLane
    predicted: PredictedLane | None
    ticker: Ticker | None


def filled_in(empty: Status, parts: Parts, problems: int) -> Status:
    """``empty`` with every figure of this moment; ``problems``: files that were refused before there was a row for them."""
    shop, ranges = parts.shop, parts.ranges
    tally = shop.tally
    lanes = tally.lanes()
    by_range = ranges.count()
    amount = tally.amount(shop.board, by_range.bytes_present)
    return dataclasses.replace(
        empty,
        files_total=tally.files_total,
        bytes_total=tally.bytes_total,
        files_done=tally.files_done,
        bytes_done=amount.done,
        bytes_underway=amount.underway,
        refused=tally.refused + problems,
        faults=tally.faults,
        rate_bytes_per_s=amount.rate,
        eta_s=amount.eta_s,
        paused=shop.board.paused,
        limit_bytes_per_s=shop.board.rate_bytes_per_s,
        source_unreachable_s=parts.desk.unreachable_s,
        lanes=lanes,
        waiting=(*parts.demand.waiting(), *ranges.waiting()),
        ranges=by_range,
        predictions=parts.predicted.counts() if parts.predicted else {},
        throttle=parts.ticker.status() if parts.ticker else Throttled(),
    )
