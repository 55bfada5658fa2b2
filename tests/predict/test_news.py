"""The ring between demand threads and the process that predicts."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from active_restore.predict import news
from active_restore.predict.news import News, Reading

if TYPE_CHECKING:
    from collections.abc import Iterator

_RING = 1 << 12


@pytest.fixture
def told() -> Iterator[News]:
    with contextlib.closing(News()) as told:
        yield told


def reading(told: News) -> Reading:
    """As in the process: descriptors of its own."""
    return Reading(told.ring, os.dup(told.bell))


def first(batches: Iterator[list[tuple[int, bool]]], count: int) -> list[tuple[int, bool]]:
    found: list[tuple[int, bool]] = []
    while len(found) < count:
        found += next(batches)
    return found


def test_what_was_told_before_anybody_read_comes_in_order(told: News) -> None:
    expected = [(row, row % 3 == 0) for row in (7, 0, 2**32 - 1, 3)]
    for row, waited in expected:
        told.tell(row, waited=waited)
    assert first(reading(told).batches(), 4) == expected


def test_who_was_overtaken_loses_the_oldest_alone(told: News) -> None:
    for row in range(3 * _RING + 5):
        told.tell(row, waited=True)
    found = [row for row, _ in next(reading(told).batches())]
    assert found == sorted(found)
    assert found[0] >= 2 * _RING
    assert found[-1] == 3 * _RING + 4


def test_another_process_goes_on_where_the_last_one_ended(told: News) -> None:
    told.tell(1, waited=True)
    assert first(reading(told).batches(), 1) == [(1, True)]
    told.tell(2, waited=False)
    assert first(reading(told).batches(), 1) == [(2, False)]


def test_a_sleeping_reader_is_woken_and_an_ended_one_ends(told: News, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "_AWAKE_S", 0.0)
    # Nothing but the bell ends its sleep.
    monkeypatch.setattr(news, "_ASLEEP_MS", -1)
    found: list[tuple[int, bool]] = []
    some = threading.Semaphore(0)

    def read() -> None:
        for batch in reading(told).batches():
            found.extend(batch)
            some.release()

    reader = threading.Thread(target=read)
    reader.start()
    for row in range(20):
        told.tell(row, waited=True)
        assert some.acquire(timeout=60)
    told.end()
    reader.join(60)
    assert not reader.is_alive()
    assert found == [(row, True) for row in range(20)]
    told.tell(99, waited=True)


def test_many_threads_tell_at_once(told: News) -> None:
    def tell(first_row: int) -> None:
        for row in range(first_row, first_row + 500):
            told.tell(row, waited=False)

    threads = [threading.Thread(target=tell, args=(number * 500,)) for number in range(4)]
    for thread in threads:
        thread.start()
    found = first(reading(told).batches(), 2000)
    for thread in threads:
        thread.join()
    assert sorted(row for row, _ in found) == list(range(2000))
