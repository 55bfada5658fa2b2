"""The book adds up whatever happens, and who is wrong may guess less."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from active_restore.predict.book import PATIENCE_S, Book

ROWS = st.integers(0, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), ROWS),
        st.tuples(st.just("hit"), ROWS),
        st.tuples(st.just("late"), ROWS),
        st.tuples(st.just("wasted"), ROWS),
        st.tuples(st.just("forget"), ROWS),
    ),
    max_size=200,
)


@given(STEPS)
def test_every_prediction_gets_one_verdict(steps: list[tuple[str, int]]) -> None:
    book = Book()
    unknown: set[int] = set()
    made = forgotten = 0
    for step, row in steps:
        if step == "admit":
            admitted = book.admit("elf", [row], 0.0)
            assert bool(admitted) == (row not in unknown)
            unknown |= set(admitted)
            made += len(admitted)
        elif step == "forget":
            forgotten += row in unknown
            book.forget(row)
            unknown.discard(row)
        else:
            book.unwanted(row) if step == "wasted" else book.wanted(row, was_there=step == "hit")
            unknown.discard(row)
    assert set(book.rows()) == unknown
    if made:
        found = book.counts()["elf"]
        assert found.made == made == found.hit + found.late + found.wasted + forgotten + len(unknown)


def test_who_is_wrong_slows_down_and_recovers() -> None:
    book = Book()
    rows = iter(range(100_000))
    admitted = [len(book.admit("sibling", [next(rows) for _ in range(500)], 0.0))]
    for _ in range(8):
        for row in book.rows():
            book.unwanted(row)
        admitted.append(len(book.admit("sibling", [next(rows) for _ in range(500)], 0.0)))
    assert admitted == sorted(admitted, reverse=True)
    assert admitted[-1] == 2
    assert book.counts()["sibling"].dropped > 0
    for _ in range(8):
        for row in book.rows():
            book.wanted(row, was_there=True)
        book.admit("sibling", [next(rows) for _ in range(500)], 0.0)
    assert len(book.rows()) > admitted[0]


def test_kinds_do_not_pay_for_each_other() -> None:
    book = Book()
    for row in book.admit("sibling", range(64), 0.0):
        book.unwanted(row)
    assert len(book.admit("elf", range(64), 0.0)) == 64


def test_what_is_due() -> None:
    book = Book()
    book.admit("elf", [1], 0.0)
    book.admit("elf", [2], 5.0)
    assert book.due(PATIENCE_S) == [1]
    assert book.due(PATIENCE_S + 5.0) == [1, 2]
