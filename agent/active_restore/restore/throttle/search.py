"""Find the rate that others on the disk do not notice: measure them at the minimum, go up while nothing changes, fall back.

The idea is MS Manners' (Douceur and Bolosky, SOSP 1999) with the falling back of TCP: a rate is left at once when it
harms, and tried again after a pause that doubles each time, so that what is harmful becomes rare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from active_restore.restore.throttle.load import Load

# Written, but not yet on the disk: what others meet first at a new rate still comes from the old one.
_SETTLING_S = 0.4
_MEASURE_S = 0.6
_LONGEST_MEASURE_S = 5.0
_ENOUGH = 200
_FEWEST = 20
# More than this, and more than chance explains, is harm to the mean; what one in twenty exceeds may grow twice as much.
_HARM = 0.08
_SURE = 2.0
_MOST_CHANCE = 0.5
_SLACK_US = 5.0
# So much more is harm before the measurement is over.
_PLAIN_HARM = 2.0
_PLAIN_REQUESTS = 30
_FIRST_PATIENCE_S, _LAST_PATIENCE_S = 4.0, 60.0
_LEAP, _STEP = 2.0, 1.25
_NEAR = 0.8
_BACK = 0.75
_BEYOND = 1.5


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests of others at one rate: how many, weighted sums of what each look said of their latency, and for how long."""

    requests: int = 0
    looks: int = 0
    mean_sum: float = 0.0
    square_sum: float = 0.0
    tail_sum: float = 0.0
    seconds: float = 0.0

    def with_load(self, load: Load) -> Sample:
        """One look more."""
        known = load.requests if load.latency_us else 0
        return Sample(
            self.requests + known,
            self.looks + bool(known),
            self.mean_sum + known * load.latency_us,
            self.square_sum + known * load.latency_us**2,
            self.tail_sum + known * load.tail_us,
            self.seconds + load.seconds,
        )

    @property
    def mean_us(self) -> float:
        """The mean latency."""
        return self.mean_sum / self.requests if self.requests else 0.0

    @property
    def tail_us(self) -> float:
        """What about one in twenty exceeded."""
        return self.tail_sum / self.requests if self.requests else 0.0

    @property
    def error(self) -> float:
        """The standard error of the mean, as a share of it: how much chance alone would change it."""
        if not self.requests or not self.mean_us:
            return 0.0
        variance = max(self.square_sum / self.requests - self.mean_us**2, 0.0)
        return math.sqrt(variance / self.looks) / self.mean_us

    @property
    def told(self) -> bool:
        """Whether it says something."""
        enough = self.requests >= _ENOUGH and self.seconds >= _MEASURE_S
        return enough or (self.requests >= _FEWEST and self.seconds >= _LONGEST_MEASURE_S)


@dataclass(frozen=True, slots=True)
class Search:
    """``rate`` now. ``usual`` is how others are served at the minimum; ``good`` a rate that did not harm them, ``harmful`` one
    that did (0: not known yet). A rate near the harmful one is tried only after ``patience_s``.
    """

    rate: float
    settled_s: float = 0.0
    sample: Sample = Sample()
    usual: Sample | None = None
    good: float = 0.0
    harmful: float = 0.0
    patience_s: float = _FIRST_PATIENCE_S
    waited_s: float = 0.0


def begin(floor: float) -> Search:
    """Somebody else uses the disk: be as little as allowed, at once."""
    return Search(floor)


def go_on(search: Search, load: Load, floor: float, best: float) -> Search:
    """One look more. ``best`` is the rate of the background alone: there is nothing to find far beyond it."""
    search = replace(search, rate=max(search.rate, floor), waited_s=search.waited_s + load.seconds)
    if search.settled_s < _SETTLING_S:
        return replace(search, settled_s=search.settled_s + load.seconds)
    at_floor = search.rate <= floor
    if not at_floor and search.usual and _plainly_harmed(load, search.usual):
        return _fall_back(search, floor)
    search = replace(search, sample=search.sample.with_load(load))
    if not search.sample.told:
        return search
    if at_floor or search.usual is None:
        return _rise(replace(search, usual=search.sample), floor, best)
    if _harmed(search.sample, search.usual):
        return _fall_back(search, floor)
    usual = min(search.usual, search.sample, key=lambda sample: sample.mean_us)
    search = replace(search, usual=usual, good=max(search.good, search.rate))
    if search.rate >= search.harmful > 0:
        search = replace(search, harmful=0.0, patience_s=max(search.patience_s / 2, _FIRST_PATIENCE_S))
    return _rise(search, floor, best)


def _rise(search: Search, floor: float, best: float) -> Search:
    """The next rate worth trying, or the same again for a while."""
    anew = replace(search, sample=Sample())
    if search.rate >= max(best, floor) * _BEYOND:
        return anew
    near = search.harmful * _NEAR
    if search.rate <= floor and search.good > floor:
        wanted = search.good
    else:
        wanted = search.rate * (_LEAP if not near or search.rate * _LEAP < near else _STEP)
    if 0 < near <= wanted and search.waited_s < search.patience_s:
        return anew
    return replace(anew, rate=wanted, settled_s=0.0, waited_s=0.0)


def _fall_back(search: Search, floor: float) -> Search:
    """It harms: back to the minimum, and be more patient before such a rate is tried again."""
    good = min(search.good, search.rate * _BACK)
    if search.rate <= search.good:
        # What was good is not any more: the others do something else now.
        good = search.rate / 2
    return Search(
        rate=floor,
        usual=search.usual,
        good=good if good > floor else 0.0,
        harmful=search.rate,
        patience_s=min(search.patience_s * 2, _LAST_PATIENCE_S),
    )


def _plainly_harmed(load: Load, usual: Sample) -> bool:
    return load.requests >= _PLAIN_REQUESTS and load.latency_us > usual.mean_us * _PLAIN_HARM + _SLACK_US


def _harmed(sample: Sample, usual: Sample) -> bool:
    chance = min(_SURE * math.hypot(sample.error, usual.error), _MOST_CHANCE)
    harm = max(_HARM, chance)
    slower = sample.mean_us > usual.mean_us * (1 + harm) + _SLACK_US
    return slower or sample.tail_us > usual.tail_us * (1 + 2 * harm) + _SLACK_US
