"""A history in memory: numbers, limits, and what it knows to be missing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmultisocket.errors import BadTopic
from gmultisocket.protocol.history import MemoryHistory
from gmultisocket.protocol.subscriptions import matches

from .pubsubmodel import ModelHistory

TOPICS = ["a.x", "a.y", "b"]


def offsets(history: MemoryHistory, pattern: str, offset: int) -> tuple[list[int], bool]:
    entries, complete = history.since(pattern, offset)
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
    monkeypatch.setattr("gmultisocket.protocol.history.monotonic", lambda: clock[0])
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
    monkeypatch.setattr("gmultisocket.protocol.history._MAX_TOPICS", 2)
    monkeypatch.setattr("gmultisocket.protocol.history._MORE", 0)
    history = MemoryHistory(">", max_entries=1)
    for topic in ("a", "b", "c"):
        history.append(topic, b"")
    # a and b are forgotten: it is not known whether d was there before, and what of it is lost.
    assert history.append("d", b"") == (4, 2, "d", b"")
    assert [offsets(history, topic, 0)[1] for topic in ("a", "d")] == [False, False]
    assert offsets(history, "d", 2) == ([4], True)


def test_topics_of_which_something_is_kept_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmultisocket.protocol.history._MAX_TOPICS", 2)
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


@given(
    st.lists(st.tuples(st.sampled_from([*TOPICS, None]), st.sampled_from(TOPICS), st.booleans()), max_size=30),
    st.sampled_from(["a.>", "a.x", "b", ">"]),
    st.integers(0, 12),
)
def test_it_knows_exactly_whether_something_is_missing(
    steps: list[tuple[str | None, str, bool]], pattern: str, offset: int
) -> None:
    history = ModelHistory("a.>", max_entries=4, max_retained=2)
    for unretained, topic, retain in steps:
        history.append(topic, b"", retain)
        if unretained is not None:
            history.unretain(unretained)
    entries, complete = history.since(pattern, offset)
    wanted = [entry for entry in history.truth if entry.offset > offset and matches(pattern, entry.topic)]
    assert [*entries] == [entry for entry in wanted if entry in entries]
    assert complete == ([*entries] == wanted and offset <= history.last_offset)
    assert all(entry.offset == 1 or entry.previous < entry.offset for entry in history.truth)
