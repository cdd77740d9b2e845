"""What a hub keeps."""

from __future__ import annotations

import pytest

from gmultisocket.backplane import hubhistory
from gmultisocket.backplane.hubhistory import HubHistory
from gmultisocket.protocol.history import everything_since


@pytest.mark.parametrize("count", [0, 1, 5, 30, 200])
def test_it_finds_from_where_a_pattern_is_complete(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubhistory, "MAX_HISTORY", 20)
    history = HubHistory(["a.>"])
    for number in range(count):
        history.append(f"a.{number % 3}", b"")
        history.append("value", b"", True)
    for pattern in ("a.>", "a.1", "a.none", "value", ">"):
        entries, found = history.fetch(pattern)
        assert entries == everything_since(history, pattern, 0).entries
        assert everything_since(history, pattern, found).complete
        if all(entry.topic in history.topics for entry in entries):
            assert not found or not everything_since(history, pattern, found - 1).complete


def test_it_is_careful_where_topics_have_lost_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubhistory, "MAX_HISTORY", 100)
    history = HubHistory(["a.>"])
    for number in range(1000):
        history.append(f"a.{number}", b"")
    entries, found = history.fetch("a.>")
    assert everything_since(history, "a.>", found).complete
    assert 800 < found < 950
    assert len(entries) == 100


def test_its_values_are_those_of_the_moment() -> None:
    history = HubHistory(["a"])
    for topic in ("v.1", "v.2", "v.3"):
        history.append(topic, b"old", True)
    history.append("a", b"")
    seen = []
    for value in history.values("v.*"):
        history.unretain("v.2")
        history.append("v.3", b"new", True)
        seen.append(None if value is None else (value.topic, value.content))
    assert seen == [("v.1", b"old"), None, ("v.3", b"new")]
    assert [value for value in history.values("v.2")] == [None]
