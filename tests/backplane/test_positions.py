"""How publications with positions are handed out at a process."""

from __future__ import annotations

from collections.abc import Collection

from gmultisocket.backplane.positions import PositionedPublications
from gmultisocket.protocol.history import Entry


class Local:
    """Records what subscribers get."""

    def __init__(self) -> None:
        self.delivered: list[int] = []
        self.values: list[int] = []
        self.began = 0
        self.replays: list[tuple[int, set[str]]] = []

    def deliver_entry(self, entry: Entry) -> None:
        self.delivered.append(entry.offset)

    def deliver_value(self, entry: Entry) -> None:
        self.values.append(entry.offset)

    def replay_behind(self, offset: int, topics: Collection[str]) -> None:
        assert not self.delivered or self.delivered[-1] <= offset
        self.replays.append((offset, {*topics}))

    def history_began(self) -> None:
        self.began += 1


def entry(offset: int, topic: str = "a", size: int = 0) -> Entry:
    return Entry(offset, 0, topic, bytes(size))


def settle(positions: PositionedPublications, again: bool = False) -> None:
    assert [*positions.settled(again)] == [], "others run"


def up(epoch: int = 5, last: int = 10) -> tuple[PositionedPublications, Local]:
    local = Local()
    positions = PositionedPublications(["a"], local)
    positions.connected(epoch, last)
    settle(positions)
    return positions, local


def test_at_first_nobody_gets_what_was_before() -> None:
    local = Local()
    positions = PositionedPublications(["a"], local)
    positions.connected(5, 10)
    positions.take(entry(9), True, False, False)
    positions.take(entry(10), True, True, False)
    settle(positions)
    assert (local.delivered, local.values) == ([], [10])
    assert positions.history.last_offset == 10
    positions.take(entry(11), True, False, True)
    assert local.delivered == [11]


def test_what_was_missed_comes_in_order_when_all_patterns_are_served_again() -> None:
    positions, local = up()
    positions.take(entry(11), True, False, True)
    positions.cut()
    assert positions.history.since("a", 11).complete is False
    positions.connected(5, 15)
    for offset, live in ((16, True), (11, False), (14, False), (17, True), (12, False), (14, False)):
        positions.take(entry(offset), True, False, live)
    assert local.delivered == [11]
    settle(positions)
    assert local.delivered == [11, 12, 14, 16, 17]
    assert local.began == 1


def test_of_a_history_that_has_begun_meanwhile_all_is_new() -> None:
    positions, local = up()
    positions.cut()
    positions.connected(6, 2)
    assert (local.began, positions.history.epoch, positions.history.last_offset) == (2, 6, 0)
    positions.take(entry(1), True, False, False)
    positions.take(entry(2), True, False, False)
    settle(positions)
    assert local.delivered == [1, 2]


def test_present_values_come_again_to_those_that_were_acknowledged_without_them() -> None:
    for again, delivered in ((True, [9]), (False, [])):
        positions, local = up()
        positions.cut()
        positions.connected(5, 10)
        positions.take(entry(9), False, True, False)
        settle(positions, again)
        assert local.delivered == delivered
        assert local.values == ([] if again else [9])


def test_a_value_that_is_fetched_for_one_more_pattern_comes_to_programs_once() -> None:
    positions, local = up()
    for _ in range(2):
        positions.take(entry(9), False, True, False)
    assert (local.delivered, local.values) == ([], [9])


def test_what_comes_while_others_run_comes_behind_what_was_missed() -> None:
    positions, local = up()
    positions.cut()
    positions.connected(5, 1000)
    for offset in range(11, 601):
        positions.take(entry(offset), True, False, False)
    portions = positions.settled(False)
    next(portions)
    assert local.delivered == [*range(11, 267)]
    positions.take(entry(1001), True, False, True)
    assert positions.is_catching_up
    assert len([*portions]) == 1
    assert local.delivered == [*range(11, 601), 1001]
    assert not positions.is_catching_up
    positions.take(entry(1002), True, False, True)
    assert local.delivered[-1] == 1002
    assert local.replays == []


def test_much_that_was_missed_comes_from_the_history_as_well() -> None:
    positions, local = up()
    positions.cut()
    positions.connected(5, 20)
    positions.take(entry(9, "old", 100_000), True, False, False)
    for offset in (11, 12):
        positions.take(entry(offset, f"a{offset}", 40_000), True, False, False)
    settle(positions)
    assert local.replays == [(10, {"a11", "a12"})]
    assert local.delivered == [11, 12]
