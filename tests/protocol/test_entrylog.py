"""A log of publications: it grows, forgets, and what is read of it stays what it was."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from gmultisocket.protocol.entrylog import EntryLog, size_of
from gmultisocket.protocol.history import Kept

from .pubsubmodel import portions_of


def joined(portions: Iterator[list[Kept]], size: int) -> list[Kept]:
    found = []
    for portion in portions:
        assert 1 <= len(portion) <= size
        found += portion
    return found


@given(
    st.lists(st.tuples(st.sampled_from(["append", "pop", "close", "count", "view"]), st.integers(1, 9)), max_size=60),
    st.integers(1, 5),
)
def test_it_is_a_list_from_which_the_oldest_leave(steps: list[tuple[str, int]], size: int) -> None:
    log, model, last, gone = EntryLog(), list[Kept](), 0, 0
    last_of = {"a": 0, "b": 0}
    views = [(log.view(), [*model], {**last_of})]
    for kind, number in steps:
        if kind == "append":
            # Not every offset is in the log.
            last += number
            topic = "a" if number < 4 else "b"
            entry = (last, last_of[topic], topic, b"")
            last_of[topic] = last
            log.tail.append(entry)
            log.bytes_in += size_of(entry)
            model.append(entry)
        elif kind == "pop":
            count = min(number, len(model))
            if count:
                assert log.remove_oldest(count) == model[count - 1][0]
            gone += sum(map(size_of, model[:count]))
            del model[:count]
        elif kind == "close":
            log.close_chunk()
        elif kind == "count":
            log.count_out()
            assert log.bytes_out == gone
        else:
            views.append((log.view(), [*model], {**last_of}))
        assert len(log) == len(model)
        assert log.bytes_out <= gone
        assert log.first_offset == (model[0][0] if model else 0)
    with portions_of(size):
        for view, was, ends in views:
            for offset in range(-1, last + 2):
                assert joined(view.behind(offset), size) == [each for each in was if each[0] > offset]
                for topic, end in ends.items():
                    wanted = [each for each in was if each[0] > offset and each[2] == topic]
                    assert joined(view.chain(end, offset), size) == wanted[::-1]


def test_a_chunk_leaves_with_its_last_publication() -> None:
    log = EntryLog()
    for offset in range(1, 101):
        log.tail.append((offset, offset - 1, "a", b""))
        if offset % 10 == 0:
            log.close_chunk()
    log.remove_oldest(95)
    # The one from which five have left, and the empty tail.
    assert [len(chunk) for chunk in log._chunks] == [10, 0]
