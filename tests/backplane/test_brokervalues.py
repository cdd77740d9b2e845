"""Present values that are fetched while newer ones may come."""

from __future__ import annotations

from gmultisocket.backplane.brokervalues import FetchedValues
from tests.backplane.brokers import RecordingPlane

ONE = b"1" * 8


def test_what_was_fetched_does_not_count_if_something_newer_has_come() -> None:
    plane = RecordingPlane()
    values = FetchedValues(plane)
    values.begin()
    values.live("a", b"new", ONE, 2)
    values.live("b", None, ONE, 3)
    for topic in ("a", "b", "c"):
        values.fetched(topic, b"old", ONE, 1)
    values.end()
    assert plane.values == [("a", b"new", True), ("b", None, True), ("c", b"old", False)]


def test_what_came_before_the_patterns_were_sent_does_not_matter() -> None:
    plane = RecordingPlane()
    values = FetchedValues(plane)
    values.live("a", b"1", ONE, 1)
    values.begin()
    values.fetched("a", b"2", ONE, 2)
    assert plane.values == [("a", b"1", True), ("a", b"2", False)]
