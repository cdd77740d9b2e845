"""Positions against the model: order, no duplicates, and no silent loss."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket.protocol.positions import Gap

from .pubsubmodel import Link, ModelHistory, ModelPub, ModelSub

TOPICS = ["a.x", "a.y", "b"]
PATTERNS = ["a.>", "a.x", "*.x", ">", "b"]


class Net:
    """Two publishers with one history, a third one with another, and a Sub."""

    def __init__(self) -> None:
        shared = ModelHistory("a.>", max_entries=5)
        self.sub = ModelSub()
        self.pubs = [ModelPub(shared), ModelPub(shared), ModelPub(self.other_history())]
        self.links: list[Link | None] = [None] * 3
        self.count = 0

    @staticmethod
    def other_history() -> ModelHistory:
        return ModelHistory("a.x", "b", max_entries=3, max_retained=1)

    def publish(self, which: int, topic: str, retain: bool = False) -> None:
        history = self.pubs[which].history
        entry = history.append(topic, b"", retain)
        for pub in self.pubs:
            if entry is not None and pub.history is history:
                pub.published(entry)

    def connect(self, which: int) -> None:
        if self.links[which] is None:
            self.count += 1
            link = self.links[which] = Link(self.count)
            self.sub.connect(link, self.pubs[which])

    def cut(self, which: int) -> None:
        link = self.links[which]
        if link is not None:
            self.links[which] = None
            self.sub.cut(link)

    def restart(self) -> None:
        """The third publisher is started again: it has a new history."""
        self.cut(2)
        self.pubs[2] = ModelPub(self.other_history())

    def up(self, which: int) -> None:
        link = self.links[which]
        if link is not None and link.up:
            self.pubs[which].receive()

    def down(self, which: int) -> None:
        link = self.links[which]
        if link is not None and link.down:
            self.sub.receive(link)

    def pump(self, which: int, chance: random.Random | None = None) -> None:
        pub = self.pubs[which]
        if pub.link is not None and pub.replays:
            pub.pump((chance or random).choice(sorted(pub.replays)))

    def settle(self) -> None:
        """Let everything arrive that is on its way."""
        while any(link is not None and (link.up or link.down) for link in self.links) or any(
            pub.link is not None and pub.replays for pub in self.pubs
        ):
            for which in range(3):
                self.up(which)
                self.pump(which)
                self.down(which)

    def step(self, chance: random.Random) -> None:
        """Do something."""
        kinds = ("publish", "subscribe", "unsubscribe", "connect", "cut", "restart", "up", "down", "pump", "expire")
        kind = chance.choices(kinds, (30, 4, 1, 6, 2, 0.5, 20, 30, 15, 1))[0]
        which = chance.randrange(3)
        mine = sorted(self.sub.patterns)
        if kind == "publish":
            self.publish(chance.choice([0, 2]), chance.choice(TOPICS), chance.random() < 0.3)
        elif kind == "subscribe":
            pattern = chance.choice(PATTERNS)
            if pattern not in self.sub.patterns:
                self.sub.subscribe(pattern, chance.random() < 0.5, chance.random() < 0.7)
        elif kind == "unsubscribe" and mine:
            self.sub.unsubscribe(chance.choice(mine))
        elif kind == "restart":
            self.restart()
        elif kind == "down":
            for _ in range(chance.randrange(1, 6)):
                self.down(which)
        elif kind == "pump":
            self.pump(which, chance)
        elif kind == "expire" and mine:
            self.sub.expire(chance.choice(mine))
        elif kind in ("connect", "cut", "up"):
            getattr(self, kind)(which)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([40, 150, 400]))
def test_the_promise_holds_whatever_happens(seed: int, steps: int) -> None:
    chance = random.Random(seed)
    net = Net()
    for _ in range(steps):
        net.step(chance)
    for pattern in list(net.sub.patterns):
        net.sub.unsubscribe(pattern)
    positions = net.sub.positions
    assert not positions._askings and not positions._meetings


@pytest.fixture
def net() -> Net:
    """A Sub that is connected to the first publisher."""
    net = Net()
    net.connect(0)
    return net


def topics_of(net: Net) -> list[tuple[int, str]]:
    return [(offset, topic) for _, offset, topic in net.sub.judge.delivered]


def test_a_newcomer_gets_the_retained_values_and_then_what_is_published(net: Net) -> None:
    net.publish(0, "a.x", retain=True)
    net.publish(0, "a.y")
    net.publish(0, "a.x", retain=True)
    net.sub.subscribe("a.>", retained=True, recover=False)
    net.settle()
    assert topics_of(net) == [(3, "a.x")]
    net.publish(0, "a.y")
    net.settle()
    assert topics_of(net) == [(3, "a.x"), (4, "a.y")]
    assert net.sub.judge.gaps == []


def test_what_was_published_meanwhile_comes_after_a_reconnect(net: Net) -> None:
    net.sub.subscribe("a.>", retained=False, recover=True)
    net.settle()
    net.publish(0, "a.x")
    net.settle()
    net.cut(0)
    for topic in ("a.x", "a.y", "a.x"):
        net.publish(0, topic)
    # Another worker with the same history.
    net.connect(1)
    net.settle()
    assert topics_of(net) == [(1, "a.x"), (2, "a.x"), (3, "a.y"), (4, "a.x")]
    assert net.sub.judge.gaps == []


def test_what_is_not_asked_for_after_a_reconnect_is_a_gap(net: Net) -> None:
    net.sub.subscribe("a.>", retained=False, recover=False)
    net.publish(0, "a.x")
    net.settle()
    net.cut(0)
    net.connect(0)
    net.settle()
    # Nothing was published meanwhile.
    assert net.sub.judge.gaps == []
    net.cut(0)
    net.publish(0, "a.x")
    net.connect(0)
    net.settle()
    assert net.sub.judge.gaps == [Gap("a.>", None, "history")]


def test_what_the_history_does_not_have_any_more_is_a_gap(net: Net) -> None:
    net.sub.subscribe("a.>", retained=False, recover=True)
    net.settle()
    net.cut(0)
    for _ in range(7):
        net.publish(0, "a.x")
    net.connect(0)
    net.settle()
    assert topics_of(net) == [(offset, "a.x") for offset in range(3, 8)]
    assert net.sub.judge.gaps == [Gap("a.>", None, "history")]


def test_a_topic_of_which_nothing_is_lost_has_no_gap(net: Net) -> None:
    net.sub.subscribe("a.y", retained=False, recover=True)
    net.settle()
    net.cut(0)
    for _ in range(7):
        net.publish(0, "a.x")
    net.publish(0, "a.y")
    net.connect(0)
    net.settle()
    assert topics_of(net) == [(8, "a.y")]
    assert net.sub.judge.gaps == []


def test_what_was_dropped_on_the_way_is_a_gap_before_the_next_one(net: Net) -> None:
    net.sub.subscribe("a.>", retained=False, recover=False)
    net.settle()
    for _ in range(6):
        net.publish(0, "a.x")
    net.settle()
    assert net.sub.judge.gaps == []
    net.publish(0, "a.y")
    net.settle()
    assert net.sub.judge.gaps == []
    net.publish(0, "a.x")
    net.settle()
    assert topics_of(net) == [(1, "a.x"), (2, "a.x"), (3, "a.x"), (4, "a.x"), (7, "a.y"), (8, "a.x")]
    assert net.sub.judge.gaps == [Gap("a.>", "a.x", "overflow")]


def test_a_publisher_that_was_started_again_has_a_gap(net: Net) -> None:
    net.connect(2)
    net.sub.subscribe("b", retained=False, recover=True)
    net.publish(2, "b")
    net.settle()
    net.restart()
    net.connect(2)
    net.publish(2, "b")
    net.settle()
    assert net.sub.judge.gaps == [Gap("b", None, "gone")]
    net.sub.expire("b")
    assert net.sub.judge.gaps == [Gap("b", None, "gone")]


def test_two_publishers_of_one_history_bring_everything_once(net: Net) -> None:
    net.connect(1)
    net.sub.subscribe(">", retained=True, recover=True)
    net.sub.subscribe("a.>", retained=True, recover=True)
    net.settle()
    for _ in range(5):
        net.publish(0, "a.x", retain=True)
        net.settle()
    assert topics_of(net) == [(offset, "a.x") for offset in range(1, 6)]
    net.cut(1)
    net.publish(0, "a.y")
    net.settle()
    assert topics_of(net)[5:] == [(6, "a.y")]
    assert net.sub.judge.gaps == []


def test_another_publisher_is_asked_again_if_the_one_that_replays_goes(net: Net) -> None:
    net.connect(1)
    net.sub.subscribe("a.>", retained=False, recover=True)
    net.settle()
    net.cut(0)
    net.cut(1)
    for _ in range(5):
        net.publish(0, "a.x")
    net.connect(0)
    net.connect(1)
    for which in (0, 1):
        net.up(which)
    # The first one begins, the second one replays everything, and then the first one goes.
    for _ in range(2):
        net.down(0)
        net.pump(0)
    while net.pubs[1].replays:
        net.pump(1)
    link = net.links[1]
    while link is not None and link.down:
        net.down(1)
    net.cut(0)
    net.settle()
    assert topics_of(net) == [(offset, "a.x") for offset in range(1, 6)]
    assert net.sub.judge.gaps == []


def test_what_an_unsubscribed_pattern_had_not_got_yet_is_a_gap_for_one_that_goes_on(net: Net) -> None:
    net.sub.subscribe(">", retained=False, recover=True)
    net.settle()
    net.cut(0)
    for retain in (False, False, True):
        net.publish(0, "a.x", retain)
    net.connect(0)
    net.up(0)
    net.pump(0)
    net.sub.subscribe("a.x", retained=True, recover=True)
    net.up(0)
    for _ in range(3):
        net.down(0)
    assert topics_of(net) == [(1, "a.x")]
    net.sub.unsubscribe(">")
    net.settle()
    assert topics_of(net) == [(1, "a.x"), (3, "a.x")]
    assert net.sub.judge.gaps == [Gap("a.x", "a.x", "overflow")]
