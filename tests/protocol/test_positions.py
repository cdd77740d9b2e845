"""Positions against the model: order, no duplicates, and no silent loss."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket.protocol import positions as positions_module
from gmultisocket.protocol.positions import Gap, Positions
from gmultisocket.protocol.pubsubwire import MAX_POSITIONS, Positioned, Replay, read_ask
from gmultisocket.wire import pack_id

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

    def change(self, which: int, history: ModelHistory | None = None) -> None:
        """A publisher gets another history, and stays connected."""
        pub = self.pubs[which]
        history = history or self.other_history()
        if pub.link is None:
            pub.history = history
        else:
            self.sub.histories[history.epoch] = history
            pub.change(history)

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
        """Deliver everything that is on its way."""
        while any(link is not None and (link.up or link.down) for link in self.links) or any(
            pub.link is not None and pub.replays for pub in self.pubs
        ):
            for which in range(3):
                self.up(which)
                self.pump(which)
                self.down(which)

    def step(self, chance: random.Random) -> None:
        """Do something."""
        kinds = ("publish", "subscribe", "unsubscribe", "connect", "cut", "restart", "change", "up", "down", "pump",
                 "expire")  # fmt: skip
        kind = chance.choices(kinds, (30, 4, 1, 6, 2, 0.5, 0.5, 20, 30, 15, 1))[0]
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
        elif kind == "change":
            self.change(2)
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


def test_behind_one_from_before_a_gap_that_was_told_a_missing_one_is_told_too(net: Net) -> None:
    net.sub.subscribe(">", retained=False, recover=False)
    net.sub.subscribe("b", retained=True, recover=True)
    net.up(0)
    net.publish(0, "a.x")
    net.settle()
    net.cut(0)
    net.connect(1)
    net.connect(0)
    net.sub.expire(">")
    net.up(0)
    net.publish(0, "a.x")
    net.publish(0, "a.x")
    net.up(1)
    # This one says that everything before the fourth may be missing.
    net.down(1)
    # The other one's answer, and its second publication. Its third one is still on the way.
    net.down(0)
    net.down(0)
    net.publish(0, "a.x")
    net.down(1)
    assert topics_of(net) == [(1, "a.x"), (2, "a.x"), (4, "a.x")]
    assert net.sub.judge.gaps == [
        Gap(">", None, "gone"), Gap(">", None, "history"), Gap(">", "a.x", "overflow")
    ]  # fmt: skip


def test_what_a_replay_has_not_brought_when_its_pattern_goes_is_not_had(net: Net) -> None:
    net.sub.subscribe("a.>", retained=False, recover=True)
    net.sub.subscribe("*.x", retained=False, recover=True)
    net.settle()
    net.cut(0)
    net.connect(0)
    net.sub.expire("a.>")
    net.publish(0, "a.x")
    net.publish(0, "a.x")
    net.up(0)
    for _ in range(5):
        net.publish(0, "a.x")
    net.up(0)
    net.pubs[0].pump("a.>")
    # The younger pattern's replay has begun with a gap, and then the first one of the older one's has come.
    for _ in range(3):
        net.down(0)
    net.sub.unsubscribe("a.>")
    net.settle()
    offsets = [offset for offset, _ in topics_of(net)]
    assert offsets == sorted({*offsets}) and offsets[-1] == 7
    assert net.sub.judge.gaps[:2] == [Gap("a.>", None, "gone"), Gap("*.x", None, "history")]


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


def test_a_publisher_that_gets_another_history_has_a_gap_before_what_follows(net: Net) -> None:
    net.connect(2)
    net.sub.subscribe("b", retained=False, recover=True)
    net.sub.subscribe("a.>", retained=False, recover=True)
    net.settle()
    gaps = net.sub.judge.gaps
    for turn in range(3):
        net.publish(2, "b")
        net.publish(0, "a.y")
        net.settle()
        assert (len(topics_of(net)), gaps) == (2 * turn + 2, [])
        net.change(2)
        net.settle()
        assert gaps == [Gap("b", None, "gone"), Gap("a.>", None, "gone")]
        gaps.clear()


def test_publishers_of_one_history_get_another_one_after_each_other(net: Net) -> None:
    net.connect(1)
    net.sub.subscribe("a.>", retained=False, recover=True)
    net.settle()
    net.publish(0, "a.x")
    net.settle()
    history = ModelHistory("a.>")
    net.change(0, history)
    net.settle()
    assert net.sub.judge.gaps == [Gap("a.>", None, "gone")]
    net.publish(0, "a.x")
    # The other one has still the history of before.
    net.publish(1, "a.x")
    net.change(1, history)
    net.publish(1, "a.x")
    net.settle()
    net.sub.expire("a.>")
    assert topics_of(net) == [(1, "a.x"), (1, "a.x"), (2, "a.x"), (2, "a.x")]
    assert net.sub.judge.gaps == [Gap("a.>", None, "gone")] * 2


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


# Bounds


def meet(positions: Positions, pattern: str, epoch: int, offset: int = 0) -> None:
    """Subscribe to a pattern, at a publisher that has nothing to replay."""
    positions.add(pattern)
    ask = positions.ask(pattern, 1)
    replay = Replay(ask.id, epoch, offset, first_meeting=True, end=True)
    assert positions.answer(pack_id(1), replay) == []


def live(positions: Positions, epoch: int, offset: int, previous: int, topic: str) -> tuple[bool, Gap | None]:
    return positions.take(pack_id(1), Positioned(0, epoch, offset, previous, b""), topic)


def test_a_pattern_has_no_more_histories_than_a_question_has_places_and_one_that_must_go_is_a_gap() -> None:
    positions = Positions()
    positions.add("a")
    number = positions.ask("a", 1).id
    went = 9

    def answer(epoch: int) -> list[Gap]:
        source = pack_id(2 if epoch == went else 1) + pack_id(epoch)
        return positions.answer(source, Replay(number, epoch, 7, first_meeting=True, end=True))

    def asked_for() -> list[int]:
        ask = positions.ask_another("a", 1)
        assert ask is not None and read_ask(ask.encode()) == ask
        return [position.epoch for position in ask.positions]

    known = [*range(1, MAX_POSITIONS + 1)]
    assert [answer(epoch) for epoch in known] == [[]] * MAX_POSITIONS
    assert asked_for() == known
    # All have a publisher: the oldest one goes.
    assert answer(MAX_POSITIONS + 1) == [Gap("a", None, "history")]
    assert asked_for() == [*range(2, MAX_POSITIONS + 2)]
    positions.remove_pipe(2)
    assert answer(MAX_POSITIONS + 2) == [Gap("a", None, "gone")]
    assert asked_for() == [epoch for epoch in range(2, MAX_POSITIONS + 3) if epoch != went]


def test_a_new_pattern_is_compared_with_a_bounded_number_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def overlap(one: str, other: str) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(positions_module, "_MAX_COMPARED", 3)
    monkeypatch.setattr(positions_module, "overlap", overlap)
    positions = Positions()
    for number in range(20):
        meet(positions, f"a.{number}", 1)
    assert len(compared) == 0 + 1 + 2 + 3


@pytest.mark.parametrize("limit", [1, 256])
def test_what_is_lost_between_patterns_is_a_gap_even_if_there_are_too_many_to_compare(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions_module, "_MAX_COMPARED", limit)
    positions = Positions()
    meet(positions, "t.x", 1)
    assert live(positions, 1, 1, 0, "t.x") == (True, None)
    # From here on some pattern matches the topic without a pause, and 2 is lost.
    meet(positions, "t.*", 1, 1)
    positions.remove("t.x")
    meet(positions, "a", 1, 1)
    meet(positions, "*.x", 1, 1)
    positions.remove("t.*")
    meet(positions, "t.x", 1, 2)
    positions.remove("*.x")
    assert live(positions, 1, 3, 2, "t.x") == (True, Gap("t.x", "t.x", "overflow"))


def test_the_topics_of_a_history_that_had_something_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions_module, "_MAX_TOPICS", 3)
    positions = Positions()
    meet(positions, "a.*", 1)
    topics = ["a.0", "a.1", "a.2", "a.0", "a.3", "a.4"]
    for offset, topic in enumerate(topics, 1):
        assert live(positions, 1, offset, topics.index(topic) + 1 if offset == 4 else 0, topic) == (True, None)
        assert len(positions._last[1]) == min(offset, 3)
    assert [live(positions, 1, offset, 0, topics[offset - 1]) for offset in (4, 5, 6)] == [(False, None)] * 3


def test_the_pattern_that_decides_is_remembered_for_a_bounded_number_of_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions_module, "_MAX_CACHED", 2)
    positions = Positions()
    meet(positions, "a.*", 1)
    for offset in range(1, 20):
        assert live(positions, 1, offset, 0, f"a.{offset}") == (True, None)
        assert live(positions, 1, offset, 0, f"a.{offset}") == (False, None)
        assert 1 <= len(positions._deciding) <= 2


def test_histories_that_no_pattern_has_are_forgotten_if_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions_module, "_MAX_HISTORIES", 3)
    positions = Positions()
    meet(positions, "stays", 1)
    for epoch in range(2, 10):
        meet(positions, "a", epoch)
        assert live(positions, epoch, 1, 0, "a") == (True, None)
        positions.remove("a")
        assert len(positions._last) <= 3
    assert [*positions._last] == [1, 8, 9]
    # What was had of one that comes back is known.
    meet(positions, "a", 9)
    assert live(positions, 9, 1, 0, "a") == (False, None)
    assert live(positions, 1, 1, 0, "stays") == (True, None)
