"""The part of an engine's history that a process has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmultisocket.backplane import planehistory
from gmultisocket.backplane.hubhistory import HubHistory
from gmultisocket.backplane.planehistory import HistoryTopics, PlaneHistory
from gmultisocket.protocol.history import Entry, everything_since
from gmultisocket.protocol.subscriptions import matches

TOPICS = ["a.x", "a.y", "b.x", "v.x"]
PATTERNS = ["a.*", "*.x", "a.x", "v.x", ">"]


def fetch(history: HubHistory, here: PlaneHistory, pattern: str) -> None:
    """Do what an engine does for a pattern."""
    entries, complete_from = history.fetch(pattern)
    for entry in entries:
        here.add(entry, entry.topic in history.topics, history.is_retained(entry))
    here.fetched(pattern, complete_from, history.last_offset)
    here.advance(history.last_offset)


@given(st.data())
def test_it_has_of_its_patterns_what_the_engine_has(data: st.DataObject) -> None:
    engine = HubHistory(["a.>", "b.>"])
    here = PlaneHistory(engine.topics)
    here.begin(engine.epoch, engine.last_offset)
    held: set[str] = set()
    for _ in range(data.draw(st.integers(0, 25))):
        step = data.draw(st.sampled_from(["publish", "publish", "retain", "unretain", "fetch", "leave", "cut"]))
        topic, pattern = data.draw(st.sampled_from(TOPICS)), data.draw(st.sampled_from(PATTERNS))
        wanted = any(matches(each, topic) for each in held)
        if step == "retain" or (step == "publish" and topic in engine.topics):
            entry = engine.append(topic, b"", step == "retain")
            if entry is not None and wanted:
                here.add(Entry(*entry), topic in engine.topics, step == "retain")
            here.advance(engine.last_offset)
        elif step == "unretain":
            engine.unretain(topic)
            here.unretain(topic)
        elif step == "fetch":
            held.add(pattern)
            fetch(engine, here, pattern)
        elif step == "leave":
            held.discard(pattern)
            here.left([pattern], lambda topic: any(matches(each, topic) for each in held))
        elif step == "cut":
            held.clear()
            here.cut()
    for pattern in PATTERNS:
        for offset in range(engine.last_offset + 2):
            mine, theirs = everything_since(here, pattern, offset), everything_since(engine, pattern, offset)
            if pattern in held:
                assert mine.complete <= theirs.complete, "something is missing, and that is not said"
                # A value that was replaced was never here, if it was fetched.
                assert [entry for entry in theirs.entries if entry not in mine.entries] == []
                assert here.retained(pattern) == engine.retained(pattern)
            elif mine.complete and offset <= engine.last_offset:
                assert mine.entries == theirs.entries


def test_what_nobody_has_fetched_is_not_complete() -> None:
    here = PlaneHistory(HistoryTopics(["a"]))
    here.begin(7, 3)
    assert everything_since(here, "a", 3) == ([], False)
    here.fetched("a", 2, 3)
    assert everything_since(here, "a", 3) == ([], True)
    assert everything_since(here, "a", 2).complete
    assert not everything_since(here, "a", 1).complete, "the engine has said that it has lost something"
    assert not everything_since(here, "a", 4).complete, "an offset from the future"
    assert (here.begins("a"), here.begins("b")) == (3, 0)
    here.cut()
    assert not everything_since(here, "a", 3).complete
    assert (here.epoch, here.last_offset) == (7, 3)


def test_a_pattern_is_served_by_one_that_covers_it() -> None:
    here = PlaneHistory(HistoryTopics(["a.>"]))
    here.begin(7, 5)
    here.fetched("a.>", 0, 5)
    assert everything_since(here, "a.b", 0).complete
    assert here.begins("a.*") == 5
    here.left(["a.>"], lambda topic: False)
    assert not everything_since(here, "a.b", 5).complete


def test_the_oldest_are_forgotten_and_then_older_positions_are_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planehistory, "MAX_HISTORY", 100)
    monkeypatch.setattr(planehistory, "MAX_HISTORY_SIZE", 5000)
    here = PlaneHistory(HistoryTopics(["a.>"]))
    here.fetched("a.>", 0, 0)
    for offset in range(1, 301):
        here.add(Entry(offset, max(0, offset - 2), f"a.{offset % 2}", b"x"), True, False)
        here.advance(offset)
    kept = everything_since(here, "a.>", 0).entries
    assert 100 <= len(kept) <= 164
    first = kept[0].offset
    assert everything_since(here, "a.>", first - 1).complete
    assert not everything_since(here, "a.>", first - 2).complete
    here.add(Entry(301, 299, "a.1", bytes(4990)), True, False)
    here.advance(301)
    assert sum(len(entry.content) for entry in everything_since(here, "a.>", 0).entries) <= 5000


def test_topics_by_which_planes_talk_have_no_history() -> None:
    topics = HistoryTopics([">"])
    assert "a" in topics
    assert "$plane.all" not in topics


def test_only_what_has_no_history_is_published_past_it() -> None:
    here = PlaneHistory(HistoryTopics(["a"]))
    assert here.append("b", b"") is None
    assert (here.keeps("a"), here.keeps("b")) == (True, False)
    here.add(Entry(1, 0, "b", b""), False, True)
    assert here.keeps("b")
    assert here.retained_topics() == ["b"]
