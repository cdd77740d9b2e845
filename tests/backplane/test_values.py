"""The present values that a plane knows."""

from __future__ import annotations

from gmultisocket.backplane.values import Values

ONE, OTHER = b"1" * 8, b"2" * 8


def test_a_value_is_new_unless_it_is_the_one_that_is_known() -> None:
    values = Values(lambda topic: None)
    assert values.is_new("a", ONE, 1)
    values.keep("a", b"x", ONE, 1)
    assert not values.is_new("a", ONE, 1)
    assert values.is_new("a", ONE, 2)
    assert values.is_new("a", OTHER, 1)
    assert [*values] == [("a", b"x")]


def test_what_nobody_wants_is_forgotten_and_that_is_told() -> None:
    told: list[str] = []
    values = Values(told.append)
    for topic in ("a", "b", "c"):
        values.keep(topic, b"", ONE, 1)
    values.forget_others(lambda topic: topic == "b")
    assert (len(values), told) == (1, ["a", "c"])
    values.clear()
    assert (len(values), told) == (0, ["a", "c", "b"])
