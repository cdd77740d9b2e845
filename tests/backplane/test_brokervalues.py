"""Present values that are fetched while newer ones come live."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gmultisocket.backplane.brokervalues import FetchedValues
from tests.backplane.brokers import RecordingPlane

ONE = b"1" * 8


def test_a_fetched_value_does_not_count_if_a_newer_one_has_come() -> None:
    plane = RecordingPlane()
    values = FetchedValues(plane)
    values.begin()
    values.live("a", b"new", ONE, 2, 12)
    values.live("b", None, ONE, 3, 13)
    for topic in ("a", "b", "c"):
        values.fetched(topic, b"old", ONE, 1, 11)
    values.end()
    assert plane.values == [("a", b"new", True), ("b", None, True), ("c", b"old", False)]


def test_a_live_one_does_not_count_if_a_newer_one_was_fetched() -> None:
    plane = RecordingPlane()
    values = FetchedValues(plane)
    values.begin()
    values.fetched("a", b"3", ONE, 3, 3)
    values.end()
    values.live("a", b"1", ONE, 1, 1)
    values.live("b", b"2", ONE, 2, 2)
    values.live("a", b"3", ONE, 3, 3)
    values.live("a", None, ONE, 4, 4)
    assert plane.values == [("a", b"3", False), ("b", b"2", True), ("a", None, True)]


def test_copies_count_once_and_a_server_may_count_anew() -> None:
    plane = RecordingPlane()
    values = FetchedValues(plane)
    values.begin()
    values.fetched("a", b"9", ONE, 9, 9)
    values.end()
    for number in (10, 10, 1, 1, 2):
        values.live("a", b"%d" % number, ONE, number, number)
    assert [content for _, content, _ in plane.values] == [b"9", b"10", b"1", b"2"]


@given(st.data())
def test_the_changes_of_a_topic_come_in_order_and_the_last_one_comes(data: st.DataObject) -> None:
    """A server that has published up to ``published``, and a client that has got the live ones up to ``got``."""
    plane = RecordingPlane()
    values = FetchedValues(plane)
    subscribed_at = got = published = data.draw(st.integers(0, 5))
    for step in data.draw(st.lists(st.sampled_from(["publish", "live", "fetch"]), max_size=30)):
        if step == "publish":
            published += 1
        elif step == "live" and got < published:
            got += 1
            values.live("a", b"%d" % got, ONE, got, got)
        elif step == "fetch" and published:
            values.begin()
            values.fetched("a", b"%d" % published, ONE, published, published)
            values.end()
    while got < published:
        got += 1
        values.live("a", b"%d" % got, ONE, got, got)
    numbers = [int(content or b"") for _, content, _ in plane.values]
    assert numbers == sorted(numbers)
    if published > subscribed_at:
        assert numbers[-1] == published
