"""A log of publications: it grows, forgets, and what is read of it stays what it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gmultisocket.protocol.entrylog import EntryLog, Kept, View

from .pubsubmodel import portions_of


def entry(offset: int) -> Kept:
    return (offset, 0, "a", b"")


def read(view: View, offset: int, size: int) -> list[Kept]:
    portions = [*view.behind(offset)]
    assert all(1 <= len(portion) <= size for portion in portions)
    return [each for portion in portions for each in portion]


@given(
    st.lists(st.tuples(st.sampled_from(["append", "pop", "close", "view"]), st.integers(1, 9)), max_size=60),
    st.integers(1, 5),
)
def test_it_is_a_list_from_which_the_oldest_leave(steps: list[tuple[str, int]], size: int) -> None:
    log, model, last = EntryLog(), list[Kept](), 0
    views = [(log.view(), [*model])]
    for kind, number in steps:
        if kind == "append":
            # Not every offset is in the log.
            last += number
            log.tail.append(entry(last))
            model.append(entry(last))
        elif kind == "pop":
            count = min(number, len(model))
            assert log.pop_oldest(count) == model[:count]
            del model[:count]
        elif kind == "close":
            log.close_chunk()
        else:
            views.append((log.view(), [*model]))
        assert len(log) == len(model)
        assert log.first_offset == (model[0][0] if model else 0)
    with portions_of(size):
        for view, was in views:
            there = {each[0]: each for each in was}
            for offset in range(-1, last + 2):
                assert read(view, offset, size) == [each for each in was if each[0] > offset]
                assert view.find(offset) == there.get(offset)


def test_a_chunk_leaves_with_its_last_publication() -> None:
    log = EntryLog()
    for offset in range(1, 101):
        log.tail.append(entry(offset))
        if offset % 10 == 0:
            log.close_chunk()
    log.pop_oldest(95)
    # The one from which five have left, and the empty tail.
    assert [len(chunk) for chunk in log._chunks] == [10, 0]
