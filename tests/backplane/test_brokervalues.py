"""Present values that are fetched while newer ones come live."""

from __future__ import annotations

import random
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket.backplane.brokervalues import FetchedValues
from tests.backplane.brokers import RecordingPlane

ONE = b"1" * 8
TWO = b"2" * 8


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


# A server whose changes come about in order


def test_a_late_change_does_not_count() -> None:
    plane = RecordingPlane()
    asked: list[str] = []
    values = FetchedValues(plane, asked.append)
    for number in (3, 5, 4, 5, 4):
        values.live("a", b"%d" % number, ONE if number % 2 else TWO, number, number)
    values.live("b", b"2", ONE, 2, 2)
    assert asked == ["a"]
    values.answered("a", (5, b"5", ONE, 5))
    assert asked == ["a", "a"], "another one was late since it was asked"
    values.answered("a", (6, b"6", ONE, 6))
    values.live("a", b"6", ONE, 6, 6)
    assert plane.values == [("a", b"3", True), ("a", b"5", True), ("b", b"2", True), ("a", b"6", True)]


def test_a_change_of_a_server_that_counts_anew_is_not_late() -> None:
    plane = RecordingPlane()
    asked: list[str] = []
    values = FetchedValues(plane, asked.append)
    values.fetched("b", b"9", ONE, 9, 9)
    for number in (7, 1, 2):
        values.live("a", b"%d" % number, ONE, number, number)
    values.answered("a", (1, b"1", ONE, 1))
    values.answered("a", (2, b"2", ONE, 2))
    assert asked == ["a", "a"]
    values.live("b", b"3", ONE, 3, 3)
    assert asked == ["a", "a", "b"]
    values.answered("b", (3, b"3", ONE, 3))
    values.live("a", None, ONE, 4, 4)
    values.live("a", b"4", TWO, 1, 4)
    assert [content for _, content, _ in plane.values] == [b"9", b"7", b"1", b"2", b"3", None, b"4"]


def test_a_topic_of_which_the_server_has_nothing_has_no_value() -> None:
    plane = RecordingPlane()
    values = FetchedValues(plane, lambda topic: None)
    for topic in ("a", "b"):
        values.live(topic, b"9", ONE, 9, 9)
        values.live(topic, b"1", ONE, 1, 1)
    values.live("b", b"10", ONE, 10, 10)
    values.answered("a", None)
    values.answered("b", None)
    assert plane.values[-2:] == [("b", b"10", True), ("a", None, True)]


def test_a_number_far_below_is_that_of_a_server_that_counts_anew() -> None:
    plane = RecordingPlane()
    values = FetchedValues(plane, lambda topic: None)
    for number in (100_000, 1, 2):
        values.live("a", b"%d" % number, ONE, number, number)
    assert [content for _, content, _ in plane.values] == [b"100000", b"1", b"2"]


def test_few_topics_are_remembered_when_nothing_is_late_any_more() -> None:
    values = FetchedValues(RecordingPlane(), lambda topic: None)
    most = 0
    for number in range(1, 30_000):
        values.live(f"{number}", b"", ONE, number, number)
        most = max(most, len(values._last))
    assert most <= 8193


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_in_the_end_each_topic_has_the_value_of_the_server(seed: int) -> None:
    """A server that publishes changes a little out of order, and sometimes begins to count again."""
    chance = random.Random(seed)
    plane = RecordingPlane()
    questions: deque[str] = deque()
    values = FetchedValues(plane, questions.append)
    kept: dict[str, tuple[int, bytes | None, bytes, int]] = {}
    on_its_way: list[tuple[str, tuple[int, bytes | None, bytes, int]]] = []
    answers: deque[tuple[str, tuple[int, bytes | None, bytes, int] | None]] = deque()
    number = total = 0

    def receive() -> None:
        topic, (at, content, origin, sequence) = on_its_way.pop(chance.randrange(min(3, len(on_its_way))))
        values.live(topic, content, origin, sequence, at)

    def answer() -> None:
        if questions:
            topic = questions.popleft()
            answers.append((topic, kept.get(topic)))
        elif answers:
            values.answered(*answers.popleft())

    for _ in range(chance.randrange(5, 60)):
        step = chance.random()
        if step < 0.5:
            number, total = number + 1, total + 1
            content = None if chance.random() < 0.2 else b"%d" % total
            topic, change = chance.choice("ab"), (number, content, ONE, total)
            kept[topic] = change
            on_its_way.append((topic, change))
        elif step < 0.75 and on_its_way:
            receive()
        elif step < 0.95:
            answer()
        else:
            # Somebody deletes everything. What the server has sent before comes before what it sends later.
            while on_its_way:
                receive()
            while answers:
                values.answered(*answers.popleft())
            number = 0
            kept.clear()
    while on_its_way:
        receive()
    while questions or answers:
        answer()
    present = {topic: content for topic, content, _ in plane.values}
    for topic, (_, content, _, _) in kept.items():
        assert present.get(topic) == content, f"{topic} has {present.get(topic)}, and at the server {content}"
