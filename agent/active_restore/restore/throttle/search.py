"""Find the rate that others on the disk do not notice: measure them at the minimum, go up while nothing changes, fall back.

The idea is MS Manners' (Douceur and Bolosky, SOSP 1999) with the falling back of TCP: a rate that harms is left at once and
tried again after a pause that doubles each time, so that harm becomes rare. Others are never served equally fast, so
harm is what chance does not explain; and who is slow at the minimum, too, is not slow because of us: a rate is accused first,
judged when the minimum was measured again, and given up when that happened twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from active_restore.restore.throttle.usual import NO_SAMPLE, UNKNOWN

if TYPE_CHECKING:
    from active_restore.restore.throttle.load import Load
    from active_restore.restore.throttle.usual import Sample, Usual

# Written, but not yet on the disk: what others meet first at a new rate still comes from the old one.
_SETTLING_S = 0.4
_FIRST_PATIENCE_S, _LAST_PATIENCE_S = 4.0, 60.0
_LEAP, _STEP = 2.0, 1.25
_NEAR = 0.8
_BACK = 0.75
_BEYOND = 3.0


@dataclass(frozen=True, slots=True)
class Search:
    """``rate`` now. Rates that were found (0: not yet): ``good`` is the highest that did not harm, ``harmful`` one that did,
    ``suspected`` one that was found guilty once, ``accused`` one to be judged, when others were slower by ``excess``.
    Near the harmful one nothing is tried before ``patience_s``.
    """

    rate: float
    settled_s: float = 0.0
    sample: Sample = NO_SAMPLE
    usual: Usual = UNKNOWN
    good: float = 0.0
    harmful: float = 0.0
    accused: float = 0.0
    excess: float = 1.0
    suspected: float = 0.0
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
    search = replace(search, sample=search.sample.with_load(load))
    if search.rate > floor and search.usual.outdone_by(load):
        return _accuse(search, floor)
    if not search.sample.told:
        return search
    if search.rate <= floor:
        judged = _judged(search)
        return _rise(replace(judged, usual=search.usual.with_sample(search.sample)), floor, best)
    if search.usual.disturbed(search.sample):
        return _given_up(search, search.rate, floor)
    if search.usual.harmed(search.sample):
        return _accuse(search, floor)
    if not search.sample.shows(search.rate):
        return replace(search, sample=NO_SAMPLE)
    return _rise(_cleared(search), floor, best)


def _cleared(search: Search) -> Search:
    """This rate harms nobody."""
    good = max(search.good, search.rate)
    search = replace(search, good=good, usual=search.usual.not_above(search.sample))
    if search.rate >= search.suspected:
        search = replace(search, suspected=0.0)
    if search.rate >= search.harmful > 0:
        search = replace(search, harmful=0.0, patience_s=max(search.patience_s / 2, _FIRST_PATIENCE_S))
    return search


def _accuse(search: Search, floor: float) -> Search:
    """Others are slower than chance explains: back to the minimum at once, and see whether they are faster there."""
    return replace(
        search,
        rate=floor,
        settled_s=0.0,
        waited_s=0.0,
        sample=NO_SAMPLE,
        accused=search.rate,
        excess=search.usual.excess(search.sample),
    )


def _judged(search: Search) -> Search:
    """The minimum was measured after an accusation."""
    if not search.accused:
        return search
    acquitted = replace(search, accused=0.0)
    if not search.usual.explains(search.excess, search.sample):
        return acquitted
    if not 0 < search.accused <= search.suspected:
        return replace(acquitted, suspected=search.accused)
    return _given_up(acquitted, search.accused, search.rate)


def _given_up(search: Search, harmful: float, rate: float) -> Search:
    """A rate that harms for certain; on at ``rate``."""
    good = min(search.good, harmful * _BACK)
    if harmful <= search.good:
        # What was good is not any more: the others do something else now.
        good = harmful / 2
    patience_s = min(search.patience_s * 2, _LAST_PATIENCE_S)
    left = replace(search, good=good, harmful=harmful, suspected=0.0, patience_s=patience_s)
    return left if rate == search.rate else replace(left, rate=rate, settled_s=0.0, waited_s=0.0, sample=NO_SAMPLE)


def _rise(search: Search, floor: float, best: float) -> Search:
    """The next rate worth trying, or the same again for a while."""
    anew = replace(search, sample=NO_SAMPLE)
    if search.rate >= max(best, floor) * _BEYOND:
        return anew
    near = search.harmful * _NEAR or math.inf
    if search.rate <= floor and search.good > floor:
        wanted = search.good
    else:
        wanted = search.rate * (_LEAP if search.rate * _LEAP < near else _STEP)
    if wanted >= near and search.waited_s < search.patience_s:
        return anew
    return replace(anew, rate=wanted, settled_s=0.0, waited_s=0.0)
