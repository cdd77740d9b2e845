"""A history in memory: numbers, limits, what it knows to be missing, and how it is read in portions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmultisocket.errors import BadTopic
from gmultisocket.protocol.entrylog import CHUNK, PORTION
from gmultisocket.protocol.history import Since, everything_since
from gmultisocket.protocol.memoryhistory import MemoryHistory
from gmultisocket.protocol.subscriptions import matches

from .pubsubmodel import ModelHistory, portions_of

TOPICS = ["a.x", "a.y", "b"]


def offsets(history: MemoryHistory, pattern: str, offset: int) -> tuple[list[int], bool]:
    entries, complete = everything_since(history, pattern, offset)
    return [entry[0] for entry in entries], complete


def test_publications_are_numbered_and_know_the_one_before() -> None:
    history = MemoryHistory(">")
    entries = [history.append(topic, b"") for topic in ("a", "b", "a", "a")]
    assert entries == [(1, 0, "a", b""), (2, 0, "b", b""), (3, 1, "a", b""), (4, 3, "a", b"")]
    assert history.last_offset == 4


def test_other_topics_are_not_kept() -> None:
    history = MemoryHistory("a.>")
    assert history.append("b", b"") is None
    assert not history.keeps("b") and history.keeps("a.x")
    assert history.append("b", b"", retain=True) is not None
    assert history.keeps("b")
    assert history.unretain("b") and not history.unretain("b")
    assert not history.keeps("b")


@pytest.mark.parametrize(
    ("limits", "reason"), [({"max_entries": 2}, "entries"), ({"max_bytes": 900}, "bytes"), ({"max_age": 10}, "age")]
)
def test_the_oldest_leave_at_a_limit(monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], reason: str) -> None:
    clock = [100.0]
    monkeypatch.setattr("gmultisocket.protocol.memoryhistory.monotonic", lambda: clock[0])
    history = MemoryHistory(">", **limits)
    for _number in range(4):
        history.append("a", bytes(200))
        clock[0] += 4
    assert offsets(history, "a", 0) == ([3, 4], False)
    assert offsets(history, "a", 2) == ([3, 4], True)
    assert history.dropped == {reason: 2}


def test_a_limit_of_memory_holds_although_nobody_asks_for_anything() -> None:
    history = MemoryHistory(">", max_bytes=900)
    for count in range(1, 5):
        history.append("a", bytes(200))
        assert history.dropped.get("bytes", 0) == max(0, count - 2)


def test_one_publication_is_kept_however_large_it_is() -> None:
    history = MemoryHistory(">", max_bytes=10)
    history.append("a", bytes(100))
    assert offsets(history, "a", 0) == ([1], True)


def test_retained_values_of_topics_without_history_come_in_their_place() -> None:
    history = MemoryHistory("a")
    for topic in ("a", "value", "a"):
        history.append(topic, b"", retain=topic == "value")
    assert offsets(history, ">", 0) == ([1, 2, 3], True)
    assert offsets(history, "*", 1) == ([2, 3], True)


def test_the_retained_values_have_limits() -> None:
    history = MemoryHistory(max_retained=2, max_retained_bytes=900)
    for topic in ("a", "b", "c"):
        history.append(topic, b"", retain=True)
    assert [topic for _, _, topic, _ in history.retained(">")] == ["b", "c"]
    history.append("d", bytes(600), retain=True)
    assert [topic for _, _, topic, _ in history.retained(">")] == ["d"]
    assert history.dropped == {"retained": 3}


def test_a_topic_that_was_forgotten_counts_as_having_missed_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmultisocket.protocol.memoryhistory._MAX_TOPICS", 2)
    monkeypatch.setattr("gmultisocket.protocol.memoryhistory._MORE", 0)
    history = MemoryHistory(">", max_entries=1)
    for topic in ("a", "b", "c"):
        history.append(topic, b"")
    # a and b are forgotten: it is not known whether d was there before, and what of it is lost.
    assert history.append("d", b"") == (4, 2, "d", b"")
    assert [offsets(history, topic, 0)[1] for topic in ("a", "d")] == [False, False]
    assert offsets(history, "d", 2) == ([4], True)


def test_topics_of_which_something_is_kept_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmultisocket.protocol.memoryhistory._MAX_TOPICS", 2)
    history = MemoryHistory("a.>")
    history.append("value", b"", retain=True)
    for number in range(4):
        history.append(f"a.{number}", b"")
        assert history.append(f"other.{number}", b"") is None
    assert history.append("a.0", b"") == (6, 2, "a.0", b"")
    assert history.unretain("value")
    assert offsets(history, ">", 0) == ([2, 3, 4, 5, 6], False)
    assert offsets(history, "a.>", 0) == ([2, 3, 4, 5, 6], True)


@pytest.mark.parametrize("limits", [{"max_entries": 0}, {"max_bytes": 1.5}, {"max_age": -1}, {"max_retained": True}])
def test_a_limit_must_be_one(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        MemoryHistory(">", **limits)


def test_a_pattern_must_be_one() -> None:
    with pytest.raises(BadTopic):
        MemoryHistory("a..b")


STEPS = st.lists(st.tuples(st.sampled_from([*TOPICS, None]), st.sampled_from(TOPICS), st.booleans()), max_size=30)


def take_steps(history: MemoryHistory, steps: list[tuple[str | None, str, bool]]) -> None:
    for unretained, topic, retain in steps:
        history.append(topic, b"", retain)
        if unretained is not None:
            history.unretain(unretained)


@given(STEPS, st.sampled_from(["a.>", "a.x", "b", ">"]), st.integers(0, 12), st.integers(1, 4))
def test_it_knows_exactly_whether_something_is_missing(
    steps: list[tuple[str | None, str, bool]], pattern: str, offset: int, size: int
) -> None:
    history = ModelHistory("a.>", max_entries=4, max_retained=2)
    with portions_of(size):
        take_steps(history, steps)
        entries, complete = everything_since(history, pattern, offset)
    wanted = [entry for entry in history.truth if entry.offset > offset and matches(pattern, entry.topic)]
    assert [*entries] == [entry for entry in wanted if entry in entries]
    assert complete == ([*entries] == wanted and offset <= history.last_offset)


@given(STEPS, STEPS, st.sampled_from(["a.>", "a.x", ">"]), st.integers(0, 12), st.integers(1, 4), st.integers(1, 9))
def test_what_is_read_in_portions_is_what_was_there_at_the_first_one(
    steps: list[tuple[str | None, str, bool]],
    later: list[tuple[str | None, str, bool]],
    pattern: str,
    offset: int,
    size: int,
    pause: int,
) -> None:
    history = ModelHistory("a.>", max_entries=4, max_retained=2)
    with portions_of(size):
        take_steps(history, steps)
        wanted, was_complete = everything_since(history, pattern, offset)
        entries, complete = [], True
        for portion in history.since(pattern, offset):
            assert len(portion.entries) <= size + 2, "a portion and the retained values between"
            entries += portion.entries
            complete = complete and portion.complete
            take_steps(history, later[:pause])
            later = later[pause:]
    assert entries == [*wanted]
    # What was published later may have made it forget that nothing was missing, but never that something is.
    assert was_complete or not complete


@pytest.mark.parametrize(
    ("pattern", "offset", "count"), [(">", 1, 1000), ("a.3", 4, 99), ("a.*", 1, 999), ("*.7", 0, 100)]
)
def test_what_leaves_while_it_is_read_is_not_missing(pattern: str, offset: int, count: int) -> None:
    history = MemoryHistory(">", max_entries=1000)
    for number in range(1000):
        history.append(f"a.{number % 10}", b"")
    history.append("b", b"")
    found = 0
    for portion in history.since(pattern, offset):
        assert portion.complete
        found += len(portion.entries)
        for _ in range(1000):
            history.append("later", b"")
    assert found == count


@pytest.mark.parametrize("pattern", ["a.x", "a.*", "*.y", ">"])
def test_a_portion_is_small_however_long_the_history_is(pattern: str) -> None:
    history = MemoryHistory(">", max_entries=100_000, max_bytes=1 << 30)
    for number in range(100_000):
        history.append("a.y" if number == 0 else "a.x", b"")
    portions = [*history.since(pattern, 0)]
    assert max(len(portion.entries) for portion in portions) <= PORTION
    # Those that do not match are looked at as well.
    assert len(portions) >= 100_000 // PORTION
    assert all(portion.complete for portion in portions)
    assert sum(len(portion.entries) for portion in portions) == {"a.x": 99_999, "*.y": 1}.get(pattern, 100_000)


def test_topics_of_which_nothing_is_kept_are_looked_at_in_portions() -> None:
    history = MemoryHistory(">", max_entries=1)
    for number in range(2000):
        history.append(f"a.{number}", b"")
    history.append("b.x", b"")
    portions = [*history.since("b.*", 0)]
    assert len(portions) >= 2000 // PORTION and all(portion.complete for portion in portions)
    assert not everything_since(history, "a.*", 1999).complete
    assert everything_since(history, "a.*", 2000) == Since([], True)


@pytest.mark.parametrize("size", [1, 100_000])
def test_what_was_forgotten_is_not_in_memory_for_long(size: int) -> None:
    history = MemoryHistory("a", max_entries=100, max_bytes=1_000_000)
    counts = []
    for _ in range(2000):
        history.append("a", bytes(size))
        counts.append(sum(len(chunk) for chunk in history._log._chunks))
    history.trim()
    assert len(history._log) == min(100, 1_000_000 // (size + 201))
    # At most one chunk has publications that were forgotten.
    assert max(counts) <= (100 + 64 + CHUNK if size == 1 else 11)
