"""The controller over simulated hours: nobody is starved, nothing swings, others are left in peace."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from active_restore.restore.throttle.control import MIN_RATE, State, floor, step
from active_restore.restore.throttle.load import Load
from active_restore.restore.throttle.requests import tail_us
from tests.restore.machine import LOOK_S, WORKERS, Disk, Machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from active_restore.restore.throttle.load import Decision
    from tests.restore.machine import Look

TRACES = sorted((Path(__file__).parent / "traces").glob("*.jsonl"))
HOUR_S = 3600.0

shares = st.floats(0, 1)
latencies = st.one_of(st.just(0.0), st.floats(1, 1e6))
loads = st.builds(
    Load,
    seconds=st.floats(0.05, 2),
    moved_bytes=st.integers(0, 1 << 32),
    requests=st.integers(0, 100_000),
    latency_us=latencies,
    tail_us=latencies,
    depth=st.integers(0, 1000),
    cpu_stall=shares,
    memory_stall=shares,
    demand=st.integers(0, 100),
    free_share=shares,
)
QUIET = Load(LOOK_S, free_share=0.5)


def follow(state: State, seen: Sequence[Load], workers: int = WORKERS) -> tuple[State, list[Decision]]:
    decisions = []
    for load in seen:
        state, decision = step(state, load, workers)
        decisions.append(decision)
    return state, decisions


@settings(deadline=None, derandomize=True)
@given(st.lists(loads, max_size=60), st.integers(0, 16))
def test_whatever_happens_the_background_keeps_its_minimum(seen: list[Load], workers: int) -> None:
    state, decisions = follow(State(), seen, workers)
    for decision in decisions:
        assert decision.rate_bytes_per_s == 0 or decision.rate_bytes_per_s >= MIN_RATE
        assert 1 <= decision.workers <= max(workers, 1)
    assert floor(state) >= MIN_RATE


@settings(deadline=None, derandomize=True)
@given(st.lists(loads, max_size=60))
def test_the_same_loads_give_the_same_decisions(seen: list[Load]) -> None:
    assert follow(State(), seen) == follow(State(), seen)


@settings(deadline=None, derandomize=True)
@given(st.lists(loads, max_size=60))
def test_when_all_are_gone_the_background_is_free_within_a_minute(seen: list[Load]) -> None:
    state, _ = follow(State(), seen)
    _, decisions = follow(state, [QUIET] * int(60 / LOOK_S))
    assert (decisions[-1].rate_bytes_per_s, decisions[-1].workers, decisions[-1].reason) == (0, WORKERS, "free")


disks = st.builds(
    Disk,
    capacity=st.floats(20e6, 2e9),
    usual_us=st.floats(20, 20_000),
    slows=st.floats(0, 10),
    noise=st.floats(0, 0.05),
)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(disks, st.integers(0, 100))
def test_alone_for_an_hour(disk: Disk, seed: int) -> None:
    looks = Machine(disk, lambda _: 0.0, seed).run(HOUR_S)
    assert {look.decision.rate_bytes_per_s for look in looks} == {0}
    assert {look.decision.workers for look in looks} == {WORKERS}


@settings(max_examples=4, deadline=None, derandomize=True)
@given(disks, st.floats(100, 20_000), st.integers(0, 100))
def test_somebody_on_a_disk_that_suffers_for_an_hour(disk: Disk, per_s: float, seed: int) -> None:
    """Beyond what the minimum costs, others are slowed by more than a tenth only while the controller tries.

    Who waits for the disk for less than 3 % of the time does not count; there is some room above that here.
    """
    assume(per_s * disk.usual_us * 1e-6 > 0.06)
    machine = Machine(disk, lambda _: per_s, seed)
    looks = machine.run(HOUR_S)
    unavoidable = disk.slows * floor(machine.state) / disk.capacity
    harmed = [look for look in looks if look.harm > 0.1 + 0.15 * (disk.noise > 0) + 2 * unavoidable]
    assert len(harmed) <= 0.05 * len(looks)
    assert min(look.moved for look in looks) >= min(MIN_RATE, disk.capacity)
    assert turns(looks) <= 400


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.floats(100e6, 2e9), st.floats(500, 3_000), st.floats(0.5, 2), st.integers(0, 100))
def test_few_requests_of_others_meet_ours(capacity: float, per_s: float, crosses: float, seed: int) -> None:
    """Though latencies tell nothing. What the minimum costs cannot be helped; who tries for more is found out soon."""
    machine = Machine(Disk(capacity, slows=0.0, crosses=crosses), lambda _: per_s, seed)
    looks = machine.run(HOUR_S / 4)
    share = sum(look.met for look in looks) / (int(per_s * LOOK_S) * len(looks))
    assert share <= 2.2 * max(0.005, crosses * floor(machine.state) / capacity)
    assert min(look.moved for look in looks) >= MIN_RATE


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.floats(20e6, 2e9), st.floats(100, 20_000), st.floats(0, 0.05), st.integers(0, 100))
def test_somebody_on_a_disk_that_does_not_care_for_an_hour(capacity: float, per_s: float, noise: float, seed: int) -> None:
    """The restore goes on, though somebody is always there: whose latency swings by itself does not starve it."""
    looks = Machine(Disk(capacity, slows=0.02, noise=noise), lambda _: per_s, seed).run(HOUR_S)
    assert sum(look.moved for look in looks) >= 0.2 * capacity * len(looks)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.floats(1, 120), st.floats(0.1, 0.9), st.floats(0, 5))
def test_somebody_who_comes_and_goes_does_not_make_it_swing(period_s: float, part: float, slows: float) -> None:
    looks = Machine(Disk(300e6, slows=slows), lambda time_s: 2000.0 * (time_s % period_s < part * period_s)).run(HOUR_S)
    flips = sum((a.decision.rate_bytes_per_s == 0) != (b.decision.rate_bytes_per_s == 0) for a, b in itertools.pairwise(looks))
    # At most there and back each time, and not at all for those who come every few seconds.
    assert flips <= min(2 * HOUR_S / period_s + 2, 250)
    assert sum(look.moved for look in looks) >= MIN_RATE * len(looks)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.floats(20e6, 2e9), st.floats(0, 60), st.floats(20, 100), st.floats(0, 3), st.integers(0, 100))
def test_logs_that_are_written_now_and_then_cost_nothing(
    capacity: float, per_s: float, usual_us: float, slows: float, seed: int
) -> None:
    """An otherwise idle machine is never silent. Who waits for the disk for three parts in a hundred of the time is nobody."""
    looks = Machine(Disk(capacity, usual_us, slows, noise=0.05), lambda _: per_s, seed).run(HOUR_S)
    assert {look.decision.rate_bytes_per_s for look in looks} == {0}


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.floats(20, 300), st.floats(0.3, 1.0), st.floats(0, 5))
def test_work_of_a_moment_costs_a_few_moments(period_s: float, burst_s: float, slows: float) -> None:
    """Not ever more: whoever comes once a minute is no reason to stay away for good."""
    machine = Machine(Disk(300e6, slows=slows), lambda time_s: 2000.0 * (time_s % period_s < burst_s))
    looks = machine.run(HOUR_S)
    lost = 1 - sum(look.moved for look in looks) / (300e6 * len(looks))
    assert lost <= (11 * burst_s + 2) / period_s


@settings(deadline=None, derandomize=True)
@given(st.lists(loads, max_size=60), st.lists(loads, min_size=5, max_size=20))
def test_who_leaves_the_processors_to_others_still_gets_the_minimum(before: list[Load], after: list[Load]) -> None:
    state, _ = follow(State(), before)
    starved = [load._replace(moved_bytes=0, seconds=1.0, cpu_stall=1.0) for load in after]
    _, decisions = follow(state, starved * 2)
    assert not any(decision.meek for decision in decisions[8:])


def test_workers_are_meek_where_others_need_the_processors() -> None:
    busy = QUIET._replace(cpu_stall=0.9, moved_bytes=20_000_000)
    state, decisions = follow(State(), [busy] * 50)
    assert (decisions[-1].meek, decisions[-1].workers) == (True, WORKERS)
    assert not follow(state, [QUIET._replace(moved_bytes=20_000_000)] * 20)[1][-1].meek


def turns(looks: Sequence[Look]) -> int:
    """How often the rate went up and then down again."""
    rates = [look.rate for look in looks]
    steps = [b - a for a, b in itertools.pairwise(rates) if a != b]
    return sum(a > 0 > b for a, b in itertools.pairwise(steps))


def test_a_rate_that_is_not_used_is_not_known_to_be_harmless() -> None:
    """Paused by the user while somebody reads: the background must not come back faster than it went."""
    state, _ = follow(State(), [QUIET._replace(moved_bytes=20_000_000)] * 50)
    reads = QUIET._replace(requests=400, latency_us=100.0, tail_us=200.0)
    state, _ = follow(state, [reads] * 20)
    _, decisions = follow(state, [reads] * 3000)
    assert max(decision.rate_bytes_per_s for decision in decisions) <= 3 * floor(state)


def test_a_new_neighbour_is_yielded_to_at_once() -> None:
    machine = Machine(Disk(300e6), lambda time_s: 1000.0 * (time_s > 10))
    looks = machine.run(12)
    assert looks[49].decision.reason == "free"
    assert looks[52].decision.reason == "disk"
    assert looks[52].decision.rate_bytes_per_s == math.ceil(floor(machine.state))


def test_short_work_of_others_is_no_use_of_the_disk() -> None:
    _, decisions = follow(State(), [QUIET, QUIET._replace(requests=500, latency_us=100.0), *[QUIET] * 5])
    assert {decision.reason for decision in decisions} == {"free"}


@pytest.mark.parametrize(
    ("load", "reason", "workers", "drops"),
    [
        (QUIET, "free", 2, False),
        (QUIET._replace(cpu_stall=0.9), "processor", 2, False),
        (QUIET._replace(memory_stall=0.5), "memory", 1, True),
        (QUIET._replace(demand=3), "demand", 1, False),
        (QUIET._replace(free_share=0.1), "free", 2, True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons(load: Load, reason: str, workers: int, *, drops: bool) -> None:
    state, decisions = follow(State(), [load] * 20)
    assert (decisions[-1].reason, decisions[-1].workers, decisions[-1].drop) == (reason, workers, drops)
    assert decisions[-1].rate_bytes_per_s == (MIN_RATE if reason == "memory" else 0)
    assert follow(state, [QUIET] * 50)[1][-1].reason == "free"


def test_a_latch_between_its_thresholds_stays_as_it_is() -> None:
    between = QUIET._replace(cpu_stall=0.25)
    assert follow(State(), [between] * 100)[1][-1].reason == "free"
    state, _ = follow(State(), [QUIET._replace(cpu_stall=0.9)] * 20)
    assert follow(state, [between] * 100)[1][-1].reason == "processor"


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_recorded_machine(path: Path) -> None:
    """What real machines said, again and again for an hour: no flutter, no starvation."""
    seen = [Load(**json.loads(line)) for line in path.read_text().splitlines()]
    times = int(HOUR_S / sum(load.seconds for load in seen) + 1)
    _, decisions = follow(State(), seen * times)
    rates = [decision.rate_bytes_per_s for decision in decisions]
    assert all(rate == 0 or rate >= MIN_RATE for rate in rates)
    flips = sum((a == 0) != (b == 0) for a, b in itertools.pairwise(rates))
    # Somebody who comes and goes once in a recording is followed there and back.
    assert flips <= max(250, 2 * times)
    wanted = {
        "alone": {"free"},
        "reads": {"disk"},
        "writes": {"disk"},
        "compiles": {"processor"},
        "crowded": {"disk", "processor"},
    }[path.stem]
    told = [decision.reason for decision in decisions]
    assert sum(reason in wanted for reason in told) >= 0.75 * len(told)


def test_tail_of_a_histogram() -> None:
    slots = [0] * 96
    assert tail_us(slots) == 0.0
    slots[20] = 90  # 64 us
    slots[28] = 10  # 256 us
    assert 256 <= tail_us(slots) < 320
