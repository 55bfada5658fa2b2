"""How others are served by the disk while the background is at its minimum: the measure of harm."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from active_restore.restore.throttle.load import Load

_MEASURE_S, _LONGEST_MEASURE_S = 3.0, 5.0
_ENOUGH, _FEWEST = 200, 20
# Less than this is no harm, however sure (natural logarithms of ratios: 8 % and 15 %).
_MEAN_HARM, _TAIL_HARM = math.log(1.08), math.log(1.15)
# So many standard deviations are beyond chance; and beyond this it is harm in any case.
_SURE = 2.5
_MOST_CHANCE = math.log(3)
_FIRST_SPREAD = 0.04
_SHORTEST_MEMORY = 0.25
# One look alone tells where it is far beyond the slowest one at the minimum.
_PLAIN_HARM = 1.5
_PLAIN_REQUESTS = 30
_WORST_FADES = 0.9
# So many of the requests of others may meet ours, or as many as do at the minimum: then the slowest one in a hundred is not
# slow because of us. Where many meet what the kernel writes in any case, it writes for others.
_MOST_MET = 0.004
_MET_ANYWAY = 0.2
# Clocks and histograms do not know more.
_LEAST_US = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests of others at one rate: how many, their latencies weighted by look, the slowest look, and for how long."""

    requests: int = 0
    met: int = 0
    mean_sum: float = 0.0
    tail_sum: float = 0.0
    worst_us: float = 0.0
    seconds: float = 0.0
    moved_bytes: int = 0

    def with_load(self, load: Load) -> Sample:
        """One look more."""
        if not load.latency_us:
            moved_bytes = self.moved_bytes + load.moved_bytes
            return replace(self, seconds=self.seconds + load.seconds, moved_bytes=moved_bytes)
        return Sample(
            self.requests + load.requests,
            self.met + load.met,
            self.mean_sum + load.requests * load.latency_us,
            self.tail_sum + load.requests * load.tail_us,
            max(self.worst_us, load.latency_us),
            self.seconds + load.seconds,
            self.moved_bytes + load.moved_bytes,
        )

    @property
    def told(self) -> bool:
        """Whether it says something."""
        enough = self.requests >= _ENOUGH and self.seconds >= _MEASURE_S
        return enough or (self.requests >= _FEWEST and self.seconds >= _LONGEST_MEASURE_S)

    def shows(self, rate: float) -> bool:
        """Whether the background really went at about this rate: one that is paused, limited or slow harms nobody."""
        return self.moved_bytes >= rate / 2 * self.seconds

    @property
    def met_share(self) -> float:
        """How many of them met requests of ours."""
        return self.met / max(self.requests, 1)

    @property
    def mean(self) -> float:
        """Logarithm of the mean latency in microseconds."""
        return math.log(_LEAST_US + self.mean_sum / max(self.requests, 1))

    @property
    def tail(self) -> float:
        """Logarithm of what about one in twenty exceeded."""
        return math.log(_LEAST_US + self.tail_sum / max(self.requests, 1))


@dataclass(frozen=True, slots=True)
class Usual:
    """Running mean and variance of what samples at the minimum said; logarithms, as latencies vary by factors."""

    samples: int = 0
    mean: float = 0.0
    tail: float = 0.0
    mean_spread: float = _FIRST_SPREAD**2
    tail_spread: float = _FIRST_SPREAD**2
    worst_us: float = 0.0
    met_share: float = 0.0

    def with_sample(self, sample: Sample) -> Usual:
        """One measurement more at the minimum."""
        worst_us = max(sample.worst_us, self.worst_us * _WORST_FADES)
        if not self.samples:
            return Usual(1, sample.mean, sample.tail, worst_us=worst_us, met_share=sample.met_share)
        part = max(1 / (self.samples + 1), _SHORTEST_MEMORY)
        mean, mean_spread = _moved(self.mean, self.mean_spread, sample.mean, part)
        tail, tail_spread = _moved(self.tail, self.tail_spread, sample.tail, part)
        met_share = self.met_share + part * (sample.met_share - self.met_share)
        return Usual(self.samples + 1, mean, tail, mean_spread, tail_spread, worst_us, met_share)

    def not_above(self, sample: Sample) -> Usual:
        """Others are faster than that while we do more: it has changed, and what is slower than now is harm."""
        return replace(self, mean=min(self.mean, sample.mean), tail=min(self.tail, sample.tail))

    def outdone_by(self, load: Load) -> bool:
        """Whether one look alone is harm beyond doubt."""
        return self.samples > 0 and load.requests >= _PLAIN_REQUESTS and load.latency_us > self.worst_us * _PLAIN_HARM

    def harmed(self, sample: Sample) -> bool:
        """Whether others were slower than chance explains."""
        slower = sample.mean - self.mean > _chance(self.mean_spread, _MEAN_HARM)
        return slower or sample.tail - self.tail > _chance(self.tail_spread, _TAIL_HARM)

    def disturbed(self, sample: Sample) -> bool:
        """Whether more of others' requests met ours than may: that needs no comparison of latencies."""
        chance = _SURE * math.sqrt(max(sample.met_share, _MOST_MET) / max(sample.requests, 1))
        return self.met_share < _MET_ANYWAY and sample.met_share > max(self.met_share, _MOST_MET) + chance

    def excess(self, sample: Sample) -> float:
        """By how much (a difference of logarithms) others were slower, by mean or tail."""
        return max(sample.mean - self.mean, sample.tail - self.tail)

    def explains(self, excess: float, sample: Sample) -> bool:
        """Whether others are so much faster in this sample at the minimum that the ``excess`` was our doing."""
        return excess - self.excess(sample) > excess / 2


NO_SAMPLE = Sample()
UNKNOWN = Usual()


def _moved(mean: float, spread: float, value: float, part: float) -> tuple[float, float]:
    """Mean and variance after one value more that counts ``part``."""
    difference = value - mean
    return mean + part * difference, (1 - part) * (spread + part * difference**2)


def _chance(spread: float, harm: float) -> float:
    return max(min(_SURE * math.sqrt(spread), _MOST_CHANCE), harm)
