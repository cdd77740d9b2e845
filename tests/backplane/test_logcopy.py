"""The copy of a broker's log in a process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmultisocket.backplane import hubhistory, logcopy
from gmultisocket.backplane.hubhistory import HubHistory
from gmultisocket.backplane.logcopy import LogCopy
from gmultisocket.protocol.history import everything_since

PATTERNS = ["a.*", "*.x", "a.x", "b.y", ">"]


@given(st.lists(st.sampled_from(["a.x", "a.y", "b.x", "b.y"]), max_size=40))
def test_it_has_what_a_hub_has_and_never_claims_more(topics: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hubhistory, "MAX_HISTORY", 7)
        patch.setattr(logcopy, "MAX_HISTORY", 7)
        hub, copy = HubHistory(["a.>", "b.>"]), LogCopy()
        for number, topic in enumerate(topics, 1):
            hub.append(topic, b"%d" % number)
            copy.add(number, topic, b"%d" % number)
        for pattern in PATTERNS:
            kept = copy.matching(pattern)
            theirs = hub.fetch(pattern)[0]
            mine = [(entry.offset, entry.topic, entry.content) for entry in kept]
            assert mine == [(each.offset, each.topic, each.content) for each in theirs[len(theirs) - len(mine) :]]
            assert everything_since(hub, pattern, copy.floor).complete
            assert all(entry.offset in {each.offset for each in kept} or entry.offset <= copy.floor for entry in theirs)


def test_numbers_that_are_left_out_are_missing() -> None:
    copy = LogCopy()
    copy.add(3, "a", b"1")
    assert (copy.floor, copy.last) == (2, 3)
    copy.pass_over(4)
    copy.add(5, "a", b"2")
    assert (copy.floor, copy.last) == (2, 5)
    copy.skip_to(9)
    assert (copy.floor, copy.last) == (9, 9)
    assert [(entry.offset, entry.previous) for entry in copy.matching("a")] == [(3, 0), (5, 3)]


def test_long_contents_leave_before_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logcopy, "MAX_HISTORY_SIZE", 100)
    copy = LogCopy()
    for number in range(1, 8):
        copy.add(number, "a", bytes(30))
    assert [entry.offset for entry in copy.matching(">")] == [5, 6, 7]
    assert copy.floor == 4
