"""The interest of a plane, against a server that keeps a set, and covers that are found by trying."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gmultisocket.backplane.interest import PORTION, Interest, PatternTree

WORDS = ["a", "b"]
PATTERNS = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]) or "*",
    st.lists(st.sampled_from([*WORDS, "*"]), max_size=3),
    st.sampled_from([[], [], [">"]]),
)


def covers(wide: str, narrow: str) -> bool:
    """Return whether all topics that match one pattern match another one."""
    wider, narrower = wide.split("."), narrow.split(".")
    for place, token in enumerate(narrower):
        if place >= len(wider):
            return False
        if wider[place] == ">":
            return True
        if token == ">" or wider[place] not in ("*", token):
            return False
    return len(wider) == len(narrower)


@given(st.lists(PATTERNS, max_size=12), PATTERNS, st.lists(st.integers(0, 11), max_size=4))
def test_a_tree_finds_who_covers_whom(patterns: list[str], asked: str, removed: list[int]) -> None:
    tree = PatternTree()
    kept = dict.fromkeys(patterns)
    for pattern in patterns:
        tree.add(pattern)
    for index in removed:
        if index < len(patterns) and patterns[index] in kept:
            del kept[patterns[index]]
            tree.remove(patterns[index])
    others = [each for each in kept if each != asked]
    assert set(tree.covering(asked)) == {each for each in others if covers(each, asked)}
    assert sorted(tree.covered(asked)) == sorted(each for each in others if covers(asked, each))


def test_a_pattern_of_64_wildcards_is_found_at_once() -> None:
    tree = PatternTree()
    wide = ".".join("*" * 64)
    tree.add(wide)
    assert list(tree.covering(wide)) == []
    assert list(tree.covering(".".join("a" * 64))) == [wide]


class WithAServer(RuleBasedStateMachine):
    """An Interest and the server that it asks."""

    def __init__(self) -> None:
        super().__init__()
        self.interest = Interest(5.0)
        self.now = 0.0
        self.wanted: Counter[str] = Counter()
        self.until: dict[str, float] = {}
        self.server: set[str] = set()
        self.asked: list[str] = []
        #: Live patterns that the engine has begun to serve: that must not end.
        self.served: set[str] = set()

    def live(self) -> set[str]:
        return {each for each, count in self.wanted.items() if count} | set(self.until)

    def send(self) -> None:
        for pattern in self.interest.take_unsubscribes():
            assert pattern in self.server, "it was not there, or not confirmed"
            self.server.remove(pattern)
        portion = [*self.interest.take_subscribes()]
        if portion:
            assert not self.asked
            assert not self.server & set(portion), "asked for twice"
            self.asked = portion
        self.served &= self.live()
        for pattern in self.live():
            served = any(covers(each, pattern) for each in self.server)
            assert served or pattern not in self.served, f"{pattern} was served, and is not any more"
            if self.interest.is_served(pattern):
                assert served
                self.served.add(pattern)

    @rule(pattern=PATTERNS)
    def add(self, pattern: str) -> None:
        self.wanted[pattern] += 1
        self.until.pop(pattern, None)
        self.interest.add(pattern)
        self.send()

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        wanted = sorted(each for each, count in self.wanted.items() if count)
        if not wanted:
            with pytest.raises(KeyError):
                self.interest.remove("a", self.now)
            return
        pattern = data.draw(st.sampled_from(wanted))
        self.wanted[pattern] -= 1
        if not self.wanted[pattern]:
            self.until[pattern] = self.now + 5.0
        self.interest.remove(pattern, self.now)
        self.send()

    @rule(seconds=st.sampled_from([1.0, 3.0, 6.0]))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        self.until = {each: until for each, until in self.until.items() if until > self.now}
        self.interest.expire(self.now)
        self.send()
        assert self.interest.next_expiry == min(self.until.values(), default=None)

    @precondition(lambda self: self.asked)
    @rule()
    def confirm(self) -> None:
        self.server.update(self.asked)
        self.asked = []
        self.interest.confirm()
        self.send()

    @rule()
    def cut(self) -> None:
        self.server.clear()
        self.asked = []
        self.served.clear()
        self.interest.cut()
        self.send()

    @invariant()
    def the_server_has_what_is_needed(self) -> None:
        assert len(self.interest) == len(self.live())
        assert set(self.interest.held) == self.server
        if not self.asked:
            live = self.live()
            needed = {each for each in live if not any(covers(wide, each) for wide in live - {each})}
            assert self.server == needed
            assert self.interest.settled


TestWithAServer = WithAServer.TestCase
TestWithAServer.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_patterns_are_asked_for_in_portions_and_the_next_one_only_after_a_confirmation() -> None:
    interest = Interest(5.0)
    for number in range(PORTION + 1):
        interest.add(f"t.{number}")
    assert len(interest.take_subscribes()) == PORTION
    assert interest.take_subscribes() == []
    interest.confirm()
    assert interest.take_subscribes() == [f"t.{PORTION}"]
    assert not interest.settled
    interest.confirm()
    assert interest.settled


def test_a_covering_pattern_is_left_only_after_all_portions_of_the_covered_ones() -> None:
    interest = Interest(0.0)
    interest.add("t.*")
    interest.take_subscribes()
    interest.confirm()
    for number in range(PORTION + 1):
        interest.add(f"t.{number}")
    assert interest.take_subscribes() == []
    interest.remove("t.*", 0.0)
    interest.expire(0.0)
    for _ in range(2):
        assert interest.take_unsubscribes() == []
        assert interest.take_subscribes()
        interest.confirm()
    assert interest.take_unsubscribes() == ["t.*"]


def test_what_comes_for_a_pattern_that_has_ended_counts_until_the_engine_is_told() -> None:
    interest = Interest(0.0)
    interest.add("t.*")
    assert interest.take_subscribes() == ["t.*"]
    interest.remove("t.*", 0.0)
    interest.expire(0.0)
    # Not confirmed, so it cannot be left yet. If it is wanted again, the engine is not asked again.
    assert interest.matches("t.a") and not interest.matches("u")
    interest.add("t.*")
    assert interest.take_subscribes() == []
    interest.remove("t.*", 0.0)
    interest.expire(0.0)
    interest.confirm()
    assert interest.take_unsubscribes() == ["t.*"]
    assert not interest.matches("t.a")
