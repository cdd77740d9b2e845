"""Topics, patterns and the index of them, against a matcher that is too plain to be wrong."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gmultisocket.errors import BadTopic, MultiSocketError
from gmultisocket.protocol.subscriptions import (
    MAX_TOKENS,
    MAX_TOPIC,
    Subscriptions,
    check_pattern,
    check_topic,
    matching,
)

WORDS = ["a", "b", "c"]
TOPICS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(".".join)
PATTERNS = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]) or "*",
    st.lists(st.sampled_from([*WORDS, "*"]), max_size=4),
    st.sampled_from([[], [], [">"]]),
)
KEYS = st.integers(0, 3)


def matches(pattern: str, topic: str) -> bool:
    """Return whether a topic matches a pattern, token by token, as the rules are told to people."""
    wanted, tokens = pattern.split("."), topic.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > place
        if place >= len(tokens) or token not in ("*", tokens[place]):
            return False
    return len(wanted) == len(tokens)


class AgainstAList(RuleBasedStateMachine):
    """The index and a list of what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.index: Subscriptions[int] = Subscriptions()
        self.held: Counter[tuple[str, int]] = Counter()

    @rule(pattern=PATTERNS, key=KEYS)
    def add(self, pattern: str, key: int) -> None:
        self.index.add(pattern, key)
        self.held[pattern, key] += 1

    @rule(pattern=PATTERNS, key=KEYS)
    def remove_at_random(self, pattern: str, key: int) -> None:
        if self.held[pattern, key]:
            self.index.remove(pattern, key)
            self.held[pattern, key] -= 1
        else:
            with pytest.raises(KeyError):
                self.index.remove(pattern, key)

    @rule(data=st.data())
    def remove_one(self, data: st.DataObject) -> None:
        there = sorted(+self.held)
        if there:
            pattern, key = data.draw(st.sampled_from(there))
            self.index.remove(pattern, key)
            self.held[pattern, key] -= 1

    @rule(topic=TOPICS)
    def match(self, topic: str) -> None:
        assert self.index.match(topic) == {key for pattern, key in +self.held if matches(pattern, topic)}

    @invariant()
    def counts(self) -> None:
        assert len(self.index) == self.held.total()

    def teardown(self) -> None:
        for (pattern, key), count in self.held.items():
            for _ in range(count):
                self.index.remove(pattern, key)
        assert len(self.index) == 0
        assert self.index._root.below is None


TestAgainstAList = AgainstAList.TestCase


@given(st.lists(PATTERNS, max_size=12), TOPICS)
def test_the_index_finds_what_a_plain_matcher_finds(patterns: list[str], topic: str) -> None:
    index: Subscriptions[str] = Subscriptions()
    for pattern in patterns:
        index.add(pattern, pattern)
    assert index.match(topic) == {pattern for pattern in patterns if matches(pattern, topic)}


@pytest.mark.parametrize(
    ("pattern", "topics", "others"),
    [
        ("a", ["a"], ["b", "a.a", "aa"]),
        ("a.*", ["a.b", "a.*b"], ["a", "a.b.c", "b.a"]),
        ("*", ["a", "ü"], ["a.b"]),
        ("*.b.*", ["a.b.c"], ["a.b", "b.b", "a.c.b"]),
        (">", ["a", "a.b", "a.b.c"], []),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a"]),
        ("*.>", ["a.b", "a.b.c"], ["a"]),
    ],
)
def test_wildcards_stand_for_what_they_do_in_nats(pattern: str, topics: list[str], others: list[str]) -> None:
    index: Subscriptions[int] = Subscriptions()
    index.add(pattern, 1)
    assert [topic for topic in topics if not index.match(topic)] == []
    assert [topic for topic in others if index.match(topic)] == []


class CountingDict(dict[str, Any]):
    """A dictionary that counts how often something is looked for in any of its kind."""

    looked = 0

    def get(self, key: str, default: Any = None) -> Any:
        CountingDict.looked += 1
        return super().get(key, default)


def count_lookups(node: Any) -> None:
    if node.below is not None:
        node.below = CountingDict(node.below)
        for below in node.below.values():
            count_lookups(below)


@given(PATTERNS, st.dictionaries(TOPICS, KEYS, max_size=12))
def test_of_a_mapping_the_items_are_found_that_a_plain_matcher_finds(pattern: str, by_topic: dict[str, int]) -> None:
    assert matching(pattern, by_topic) == [item for item in by_topic.items() if matches(pattern, item[0])]


def test_what_a_topic_costs_depends_on_its_tokens_and_not_on_the_patterns() -> None:
    index: Subscriptions[int] = Subscriptions()
    for number in range(10_000):
        index.add(f"orders.{number}.created", number)
    count_lookups(index._root)
    before = CountingDict.looked
    assert index.match("orders.77.created") == {77}
    assert CountingDict.looked - before == 3 * len("orders.77.created".split("."))


@pytest.mark.parametrize("topic", ["a", "a.b", "a b.c", "ü.ß.日本", "a-b._", "x" * MAX_TOPIC])
def test_topics_are_their_bytes(topic: str) -> None:
    assert check_topic(topic) == topic.encode()
    assert check_pattern(topic) == topic.encode()


@pytest.mark.parametrize("pattern", ["*", ">", "a.*", "*.*.>", "a.*.b.>", ".".join(["a"] * MAX_TOKENS)])
def test_patterns_are_their_bytes(pattern: str) -> None:
    assert check_pattern(pattern) == pattern.encode()


@pytest.mark.parametrize(
    ("topic", "hint"),
    [
        ("", "none is empty"),
        (".", "none is empty"),
        ("a..b", "none is empty"),
        (".a", "none is empty"),
        ("a.", "none is empty"),
        (b"a", "a str of tokens"),
        (None, "a str of tokens"),
        ("a.\ud800", "surrogate"),
        ("x" * (MAX_TOPIC + 1), "at most 65535 bytes"),
    ],
)
def test_what_is_neither_topic_nor_pattern_is_refused_with_what_would_be_right(topic: object, hint: str) -> None:
    for check in (check_topic, check_pattern):
        with pytest.raises(BadTopic, match=hint) as caught:
            check(topic)  # type: ignore[arg-type]
        assert isinstance(caught.value, MultiSocketError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize("topic", ["*", ">", "a.*", "a.>", "a*"])
def test_a_topic_has_no_wildcards(topic: str) -> None:
    with pytest.raises(BadTopic, match="no wildcards"):
        check_topic(topic)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        (">.a", "the last token"),
        ("a.>.b", "the last token"),
        ("a*", "a whole token"),
        ("a.b>", "a whole token"),
        ("**", "a whole token"),
        (".".join(["a"] * (MAX_TOKENS + 1)), "at most 64 tokens"),
    ],
)
def test_what_is_no_pattern_is_refused_with_what_would_be_right(pattern: str, hint: str) -> None:
    with pytest.raises(BadTopic, match=hint):
        check_pattern(pattern)


def test_a_key_is_blamed_for_a_long_search_only_if_a_fair_part_of_it_is_due_to_the_key() -> None:
    def crowd(keys: int) -> int | None:
        index: Subscriptions[int] = Subscriptions()
        # 2,000 patterns that begin alike, and end differently.
        for number in range(2000):
            bits = f"{number:011b}"
            index.add(".".join("*a"[int(bit)] for bit in bits) + ".end", number % keys)
        return index.crowd(".".join("a" * 11))

    assert crowd(1) == 0
    assert crowd(2) in (0, 1)
    assert crowd(2000) is None
