"""Pages of pieces, bits of pages, and how far to read ahead."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from active_restore.model import Piece
from active_restore.presence import PAGE_BYTES, Presence, memory_bytes, page_count
from active_restore.restore.ranges.ahead import Ahead
from active_restore.restore.ranges.pages import missing, present, whole_pages

TIB = 1 << 40


@given(st.data())
def test_whole_pages_of_any_pieces(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 60_000))
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=10))})
    zero = [data.draw(st.booleans()) for _ in cuts]
    content = bytearray(b"\xaa" * size)
    for begin, end, empty in zip(cuts, cuts[1:], zero, strict=False):
        if empty:
            content[begin:end] = bytes(end - begin)
    first = data.draw(st.integers(0, len(cuts) - 2))
    last = data.draw(st.integers(first + 1, len(cuts) - 1))
    pieces = [Piece(cuts[n], bytes(content[cuts[n] : cuts[n + 1]])) for n in range(first, last) if not zero[n]]
    out = bytearray(size)
    for offset, chunk in whole_pages(pieces, cuts[first], cuts[last], size):
        assert offset % PAGE_BYTES == 0
        assert len(chunk) % PAGE_BYTES == 0 or offset + len(chunk) == size
        out[offset : offset + len(chunk)] = chunk
    low = cuts[first] + -cuts[first] % PAGE_BYTES
    high = size if cuts[last] == size else max(cuts[last] - cuts[last] % PAGE_BYTES, low)
    assert out[low:high] == content[low:high]
    assert not any(out[:low]) or low > size
    assert not any(out[high:])


@given(st.integers(1, 100_000_000), st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 30_000)), max_size=5), st.data())
def test_presence(size: int, stretches: list[tuple[int, int]], data: st.DataObject) -> None:
    memory = memoryview(bytearray(memory_bytes(size)))
    presence = Presence(memory, size)
    model = [False] * page_count(size)
    for begin, end in stretches:
        begin, end = sorted((min(begin, len(model)), min(end, len(model))))
        presence.add(begin, end)
        model[begin:end] = [True] * (end - begin)
    assert present(presence) == sum(model)
    for group in range(-(-len(model) // 256)):
        at = 24 + 8 * -(-len(model) // 64) + group // 8
        assert memory[at] >> group % 8 & 1 == all(model[group * 256 : group * 256 + 256])
    first = data.draw(st.integers(0, len(model)))
    last = data.draw(st.integers(first, len(model)))
    assert presence.covers(first, last) == all(model[first:last])
    gaps = list(missing(presence, first, last))
    assert [page for begin, end in gaps for page in range(begin, end)] == [n for n in range(first, last) if not model[n]]
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(gaps))


def test_state_of_a_tebibyte_is_compact() -> None:
    assert memory_bytes(TIB) < 33 << 20
    presence = Presence(memoryview(bytearray(memory_bytes(TIB))), TIB)
    presence.add(5, presence.pages - 1)
    assert list(missing(presence, 0, presence.pages)) == [(0, 5), (presence.pages - 1, presence.pages)]
    assert presence.clip(TIB - 10, 1 << 20) == (presence.pages - 1, presence.pages)


def test_ahead_grows_while_sequential_and_resets_when_random() -> None:
    ahead = Ahead()
    assert ahead.after(0, 10) == 10
    at, windows = 10, []
    for _ in range(8):
        end = ahead.after(at, at + 10)
        windows.append(end - at - 10)
        at = end
    assert windows == [256, 512, 1024, 2048, 4096, 8192, 8192, 8192]
    assert ahead.after(3, 5) == 5
    assert ahead.after(70_000, 70_001) == 70_001
