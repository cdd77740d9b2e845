"""The topics that a Pub remembers: always right, and forgotten only where a subscription changes them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gmultisocket.protocol import topiccache
from gmultisocket.protocol.subscriptions import Subscriptions
from gmultisocket.protocol.topiccache import TopicCache

WORDS = ["a", "b"]
TOPICS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(".".join)
PATTERNS = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]) or "*",
    st.lists(st.sampled_from([*WORDS, "*"]), max_size=5),
    st.sampled_from([[], [], [">"]]),
)
KEYS = st.integers(0, 3)


class AgainstAnIndex(RuleBasedStateMachine):
    """A cache, and the index that it remembers the answers of."""

    max_visits = 256

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(topiccache, "_MAX_VISITS", self.max_visits)
        self.index: Subscriptions[int] = Subscriptions()
        self.cache: TopicCache[int] = TopicCache()
        self.held: Counter[tuple[str, int]] = Counter()

    @rule(topic=TOPICS)
    def publish(self, topic: str) -> None:
        if topic not in self.cache.groups:
            self.cache.add(topic, b"", self.index.match(topic))

    @rule(pattern=PATTERNS, key=KEYS)
    def subscribe(self, pattern: str, key: int) -> None:
        self.index.add(pattern, key)
        self.held[pattern, key] += 1
        self.cache.changed(pattern, key, True)

    @rule(pattern=PATTERNS, key=KEYS)
    def unsubscribe(self, pattern: str, key: int) -> None:
        if self.held[pattern, key]:
            self.index.remove(pattern, key)
            self.held[pattern, key] -= 1
            self.cache.changed(pattern, key, False)

    @rule(key=KEYS)
    def leave(self, key: int) -> None:
        for (pattern, each), count in self.held.items():
            if each == key:
                for _ in range(count):
                    self.index.remove(pattern, key)
                self.held[pattern, key] = 0
        self.cache.forget_key(key)

    @invariant()
    def is_right(self) -> None:
        for topic, (_, keys) in self.cache.groups.items():
            assert keys == self.index.match(topic)
        assert self.cache._keys == sum(len(keys) for _, keys in self.cache.groups.values())

    def teardown(self) -> None:
        self.patch.undo()
        for topic in list(self.cache.groups):
            self.cache._forget(topic)
        assert not self.cache._tree and not self.cache._new and not self.cache._keys


class WithShortSearches(AgainstAnIndex):
    max_visits = 3


TestAgainstAnIndex = AgainstAnIndex.TestCase
TestWithShortSearches = WithShortSearches.TestCase
# Each example has 50 steps, and all is checked after each of them.
TestAgainstAnIndex.settings = TestWithShortSearches.settings = settings(max_examples=50)


def remembered(*topics: str) -> TopicCache[int]:
    cache: TopicCache[int] = TopicCache()
    for topic in topics:
        cache.add(topic, b"", {1})
    return cache


@pytest.mark.parametrize(
    ("pattern", "forgotten"),
    [
        ("orders.1.created", ["orders.1.created"]),
        ("orders.*.created", ["orders.1.created", "orders.2.created"]),
        ("orders.>", ["orders.1.created", "orders.2.created", "orders.2"]),
        ("orders.*", ["orders.2"]),
        ("*", ["bills"]),
        (">", ["orders.1.created", "orders.2.created", "orders.2", "bills"]),
        ("orders.3.created", []),
        ("orders.1.created.>", []),
    ],
)
def test_only_topics_that_match_are_forgotten(pattern: str, forgotten: list[str]) -> None:
    topics = ["orders.1.created", "orders.2.created", "orders.2", "bills"]
    cache = remembered(*topics)
    # These change nothing: 1 has the topics anyway, and 2 has none of them.
    cache.changed(pattern, 1, True)
    cache.changed(pattern, 2, False)
    assert list(cache.groups) == topics
    cache.changed(pattern, 2, True)
    # A search may take a longer topic that begins alike for one that matches.
    assert [topic for topic in topics if topic not in cache.groups and topic not in forgotten] in ([], topics[:1])
    assert not set(forgotten) & set(cache.groups)


def test_a_search_over_the_limit_forgets_all() -> None:
    cache = remembered(*(f"a.{number}.b" for number in range(500)))
    cache.changed("a.1.*", 2, True)
    assert len(cache.groups) == 499
    cache.changed("a.*.c", 2, True)
    assert not cache.groups


def test_topics_that_are_too_many_do_not_push_each_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topiccache, "_MAX_TOPICS", 10)
    cache = remembered(*(str(number) for number in range(10)))
    before = dict(cache.groups)
    for number in range(10, 90):
        assert cache.add(str(number), b"head", {number}) == (b"head", {number})
        assert cache.groups == before
    # By now, the others have room for long enough.
    cache.add("new", b"", {0})
    assert list(cache.groups) == ["new"]


def test_the_number_of_topics_and_of_their_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = remembered(*(str(number) for number in range(3000)))
    assert len(cache.groups) <= 1024
    monkeypatch.setattr(topiccache, "_MAX_KEYS", 100)
    cache = remembered()
    for number in range(100):
        cache.add(f"b.{number}", b"", set(range(30)))
        assert cache._keys <= 130
