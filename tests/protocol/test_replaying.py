"""Long replays: they are found, sent and broken off in portions, and others are served meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.protocol import History, MemoryHistory, Pub, RemoteSub, Since, Sub
from gmultisocket.protocol import replaying as replaying_module
from gmultisocket.protocol.entrylog import PORTION
from gmultisocket.protocol.history import everything_since
from gmultisocket.protocol.pubsubwire import Ask, Position, Positioned, Replay
from gmultisocket.protocol.replaying import Replays
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, Message

from .pubsubhand import LONG, answers, ask, hand


def replays_of(pub: Pub) -> Replays:
    replays = pub._keeper.replays
    assert replays is not None
    return replays


def is_idle(pub: Pub) -> bool:
    """Return whether no replay runs, and nothing of one is left."""
    replays = replays_of(pub)
    return not (replays.queues or replays._pins.size or replays._pins._tables or replays._running or replays._unneeded)


class Watched(MemoryHistory):
    """A history that notes in which turn of the loop each portion of it is read, and that can hold a reader up.

    Attributes:
        turns: the turn of each portion; a greenlet counts them.
        held_at: readers get nothing but empty portions from the one with this number on; None: they are not held up.
        holding: a reader is held up.
    """

    def __init__(self, *patterns: str, held_at: int | None = None, **limits: int) -> None:
        super().__init__(*patterns, **limits)
        self.turns: list[int] = []
        self.held_at = held_at
        self.holding = False
        self._turn = 0

    def count_turns(self) -> None:
        while True:
            self._turn += 1
            gevent.sleep(0)

    def since(self, pattern: str, offset: int) -> Iterator[Since]:
        for number, portion in enumerate(super().since(pattern, offset)):
            while self.held_at is not None and number >= self.held_at:
                self.holding = True
                yield Since((), True)
            self.turns.append(self._turn)
            yield portion


@pytest.mark.parametrize("pattern", ["a", "*"])
def test_a_long_history_is_found_in_portions_and_others_are_served_meanwhile(pattern: str) -> None:
    count = 20_000
    history = Watched("a", max_entries=count)
    with Pub(history=history) as pub, Sub() as other:
        other.dial(pub.listen("inproc://meanwhile").address)
        other.subscribe("b.c", LONG)
        for _ in range(count):
            pub.publish("a", b"")
        with hand("long", pub, **{"socket.recv_queue_size": 2 * count}) as by_hand:
            counting = gevent.spawn(history.count_turns)
            ask(by_hand, Ask(1, False, True, (Position(history.epoch, 0),), pattern))
            wait_until(lambda: len(history.turns) > 1)
            pub.publish("b.c", b"meanwhile")
            assert other.recv(LONG) == ("b.c", b"meanwhile")
            got = answers(by_hand, count + 2)
            counting.kill()
        epoch = history.epoch
        assert got[0] == Replay(1, epoch, count, recovered=True) and got[-1] == Replay(1, epoch, count, end=True)
        assert [each.offset for each in got[1:-1] if isinstance(each, Positioned)] == [*range(1, count + 1)]
        assert len(history.turns) >= count // PORTION
        # Greenlets and the loop take turns, so the counter may come after two portions.
        assert max(Counter(history.turns).values()) <= 2
        wait_until(lambda: is_idle(pub))


def test_many_retained_values_are_found_in_portions() -> None:
    with Pub() as pub, Sub() as sub:
        for number in range(2000):
            pub.publish(f"a.{number:04}", b"", retain=True)
        sizes: set[int] = set()

        def watch() -> None:
            while True:
                sizes.add(replays_of(pub)._pins.size)
                gevent.sleep(0)

        watching: list[gevent.Greenlet[[], None]] = []
        history = pub._keeper.history
        assert history is not None
        retained_topics = history.retained_topics

        def watched() -> list[str]:
            watching.append(gevent.spawn(watch))
            return retained_topics()

        history.retained_topics = watched  # type: ignore[method-assign]
        sub.dial(pub.listen("inproc://many-values").address)
        sub.on_gap(lambda gap: pytest.fail("nothing is missing"))
        sub.subscribe("a.*")
        assert [sub.recv(LONG)[0] for _ in range(2000)] == [f"a.{number:04}" for number in range(2000)]
        gevent.killall(watching)
        # The memory that they take was seen to grow in steps. Sometimes two of them come between two looks.
        assert len(sizes) > 2000 // 256 / 2
        wait_until(lambda: is_idle(pub))


def test_what_is_published_or_forgotten_while_a_replay_is_found_makes_no_gap() -> None:
    history = Watched("a", max_entries=1000, held_at=2)
    with Pub(history=history) as pub, hand("found", pub, **{"socket.recv_queue_size": 10_000}) as by_hand:
        for _ in range(1000):
            pub.publish("a", b"")
        ask(by_hand, Ask(1, False, True, (Position(history.epoch, 0),), "a"))
        wait_until(lambda: history.holding)
        for _ in range(2000):
            pub.publish("a", b"")
        assert not everything_since_is_complete(history), "the history has forgotten what belongs to the replay"
        assert by_hand.queued == 0
        history.held_at = None
        epoch = history.epoch
        got = answers(by_hand, 3002)
        assert got[0] == Replay(1, epoch, 1000, recovered=True) and got[-1] == Replay(1, epoch, 3000, end=True)
        assert [each.offset for each in got[1:-1] if isinstance(each, Positioned)] == [*range(1, 3001)]
        wait_until(lambda: is_idle(pub))


def publish_during_a_replay(pub: Pub, by_hand: Socket, history: Watched, count: int) -> None:
    """Publish once and ask for a replay; publish more while that is held, and let it go on."""
    pub.publish("a", b"")
    ask(by_hand, Ask(1, False, True, (Position(history.epoch, 0),), "a"))
    wait_until(lambda: history.holding)
    for _ in range(count):
        pub.publish("a", b"")
    history.held_at = None


def test_what_is_published_during_a_replay_and_may_not_wait_is_read_from_the_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replaying_module, "_MAX_ADDED", 5)
    history = Watched("a", held_at=0)
    with Pub(history=history) as pub, hand("reads-on", pub, **{"socket.recv_queue_size": 5000}) as by_hand:
        publish_during_a_replay(pub, by_hand, history, 2000)
        got = answers(by_hand, 2003)
        assert got[0] == Replay(1, history.epoch, 1, recovered=True)
        assert got[-1] == Replay(1, history.epoch, 2001, end=True)
        assert [each.offset for each in got[1:-1] if isinstance(each, Positioned)] == [*range(1, 2002)]
        pub.publish("a", b"")
        assert answers(by_hand, 1) == [Positioned(0, history.epoch, 2002, 2001, b"\0\1a")]
        assert "overflow" not in pub.counters.drops
        wait_until(lambda: is_idle(pub))


def test_what_the_history_has_forgotten_of_that_is_counted_and_seen_at_the_next_publication(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replaying_module, "_MAX_ADDED", 5)
    history = Watched("a", max_entries=100, held_at=0)
    with Pub(history=history) as pub, hand("forgets", pub, **{"socket.recv_queue_size": 5000}) as by_hand:
        publish_during_a_replay(pub, by_hand, history, 1000)
        got = answers(by_hand, 108)
        found = [(each.offset, each.previous) for each in got[1:-1] if isinstance(each, Positioned)]
        assert found == [(offset, offset - 1) for offset in (*range(1, 7), *range(902, 1002))]
        assert got[-1] == Replay(1, history.epoch, 1001, end=True)
        assert pub.counters.drops == {"overflow": 1}
        wait_until(lambda: is_idle(pub))


def everything_since_is_complete(history: Watched) -> bool:
    held_at, history.held_at = history.held_at, None
    try:
        return everything_since(history, "a", 0).complete
    finally:
        history.held_at = held_at


def unsubscribes(pub: Pub, by_hand: Socket) -> None:
    by_hand.send_msg(Message(CONTROL | TO_ALL, content=b"\x00a"))


def closes(pub: Pub, by_hand: Socket) -> None:
    by_hand.close()


def is_revoked(pub: Pub, by_hand: Socket) -> None:
    (pipe,) = pub.pipes.values()
    assert pub.revoke(RemoteSub(pipe, pipe.path), "a")


@pytest.mark.parametrize("how", [unsubscribes, closes, is_revoked])
def test_a_subscription_that_ends_while_its_replay_is_found_leaves_nothing(how: Callable[[Pub, Socket], None]) -> None:
    history = Watched("a", held_at=3)
    with Pub(history=history) as pub, hand("ends-early", pub) as by_hand:
        for _ in range(1000):
            pub.publish("a", b"")
        ask(by_hand, Ask(1, False, True, (Position(history.epoch, 0),), "a"))
        wait_until(lambda: history.holding)
        pub.publish("a", b"")
        assert replays_of(pub)._pins.size
        how(pub, by_hand)
        wait_until(lambda: not pub.subscriptions and is_idle(pub))
        assert not replays_of(pub).askings
        if how is is_revoked:
            assert answers(by_hand, 1) == [b"\x03\x00\x01arevoked"]
        if how is not closes:
            pub.publish("a", b"")
            assert by_hand.queued == 0


def test_another_history_begins_a_replay_again_that_is_being_found() -> None:
    history = Watched("a", held_at=2)
    with Pub(history=history) as pub, hand("found-again", pub, **{"socket.recv_queue_size": 2000}) as by_hand:
        for _ in range(1000):
            pub.publish("a", b"")
        before = Position(history.epoch, 0)
        ask(by_hand, Ask(1, False, True, (before,), "a"))
        wait_until(lambda: history.holding)
        history.epoch += 1
        pub.replay_again()
        history.held_at = None
        # Its position is of the history before.
        assert answers(by_hand, 1) == [Replay(1, history.epoch, 1000, first_meeting=True, end=True)]
        wait_until(lambda: is_idle(pub))


def test_a_long_replay_that_is_broken_off_is_unpinned_in_portions() -> None:
    history = MemoryHistory("a")
    with Pub({"socket.send_queue_size": 1}, history=history) as pub:
        for _ in range(5000):
            pub.publish("a", b"")
        with hand("broken-off", pub, **{"socket.recv_queue_size": 1}) as by_hand:
            ask(by_hand, Ask(1, False, True, (Position(history.epoch, 0),), "a"))
            assert answers(by_hand, 2)[0] == Replay(1, history.epoch, 5000, recovered=True)
        sizes = set()
        while not is_idle(pub):
            sizes.add(replays_of(pub)._pins.size)
            gevent.sleep(0)
        # Sometimes two portions come between two looks.
        assert len(sizes) > 5000 // 256 / 2


def test_a_new_replay_waits_for_the_memory_of_one_that_was_broken_off() -> None:
    history = MemoryHistory("a")
    # Enough for one replay, and not for the places of two.
    options = {"socket.send_queue_size": 1, "protocol.pubsub.replay_bytes": 5000 * 17}
    with Pub(options, history=history) as pub:
        for _ in range(5000):
            pub.publish("a", b"")
        position = (Position(history.epoch, 0),)
        with (
            hand("first", pub, **{"socket.recv_queue_size": 1}) as first,
            hand("second", pub, **{"socket.recv_queue_size": 6000}) as second,
        ):
            ask(first, Ask(1, False, True, position, "a"))
            assert answers(first, 1) == [Replay(1, history.epoch, 5000, recovered=True)]
            first.close()
            ask(second, Ask(1, False, True, position, "a"))
            assert answers(second, 5002)[0] == Replay(1, history.epoch, 5000, recovered=True)


def test_a_replay_for_which_there_is_no_memory_gives_back_what_it_has_taken() -> None:
    history = MemoryHistory("a.>")
    options = {"protocol.pubsub.replay_bytes": 20_000}
    with Pub(options, history=history) as pub, hand("too-long", pub) as by_hand:
        pub.publish("a.x", b"value", retain=True)
        for _ in range(5000):
            pub.publish("a.y", b"")
        ask(by_hand, Ask(1, True, True, (Position(history.epoch, 0),), "a.*"))
        assert answers(by_hand, 3) == [
            Replay(1, history.epoch, 5001, gap=True),
            Positioned(1, history.epoch, 1, 0, b"\0\3a.xvalue"),
            Replay(1, history.epoch, 5001, end=True),
        ]
        wait_until(lambda: is_idle(pub))


# Histories of other people


class Short(History):
    """A history as a program may write it: a list, which is read in one piece. It may fail after the first portion."""

    def __init__(self, fails: bool) -> None:
        self.epoch = 7
        self.dropped = {}
        self.kept: list[tuple[int, int, str, bytes]] = []
        self.fails = fails

    @property
    def last_offset(self) -> int:
        return len(self.kept)

    def keeps(self, topic: str) -> bool:
        return True

    def append(self, topic: str, content: bytes, retain: bool = False) -> tuple[int, int, str, bytes]:
        offset = len(self.kept) + 1
        self.kept.append((offset, offset - 1, topic, content))
        return self.kept[-1]

    def unretain(self, topic: str) -> bool:
        return False

    def since(self, pattern: str, offset: int) -> Iterator[Since]:
        yield Since(self.kept[offset:], True)
        if self.fails:
            raise OSError("the disk is gone")

    def retained_topics(self) -> list[str]:
        return []

    def retained(self, pattern: str) -> list[tuple[int, int, str, bytes]]:
        return []


def test_a_history_may_yield_everything_in_one_portion() -> None:
    history = Short(fails=False)
    with Pub(history=history) as pub, hand("short", pub, **{"socket.recv_queue_size": 2000}) as by_hand:
        for _ in range(1000):
            pub.publish("a", b"")
        ask(by_hand, Ask(1, False, True, (Position(7, 0),), "a"))
        got = answers(by_hand, 1002)
        assert got[0] == Replay(1, 7, 1000, recovered=True)
        assert [each.offset for each in got[1:-1] if isinstance(each, Positioned)] == [*range(1, 1001)]
        wait_until(lambda: is_idle(pub))


def test_a_history_that_fails_is_logged_and_makes_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    history = Short(fails=True)
    with Pub(history=history) as pub, hand("fails", pub) as by_hand:
        pub.publish("a", b"1")
        ask(by_hand, Ask(1, False, True, (Position(7, 0),), "a"))
        found, live = Positioned(1, 7, 1, 0, b"\0\1a1"), Positioned(0, 7, 2, 1, b"\0\1a2")
        assert answers(by_hand, 3) == [Replay(1, 7, 1, gap=True), found, Replay(1, 7, 1, end=True)]
        assert "a history failed" in caplog.text and "the disk is gone" in caplog.text
        pub.publish("a", b"2")
        assert answers(by_hand, 1) == [live]
        wait_until(lambda: is_idle(pub))


def test_a_value_that_was_forgotten_does_not_come_behind_a_later_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying_module, "_MAX_OVERTAKEN", 1)
    with Pub() as pub, hand("overtaken", pub) as by_hand:
        for number in range(2000):
            pub.publish(f"a.{number}", b"old", retain=True)
        ask(by_hand, Ask(1, True, False, (), "a.*"))

        def values_are_found() -> bool:
            askings = [asking for queue in replays_of(pub).queues.values() for asking in queue.values()]
            return any(asking.beginning is not None and asking.beginning.entries for asking in askings)

        wait_until(lambda: pub._keeper.replays is not None and values_are_found())
        pub.publish("a.1", b"waits too", retain=True)
        for topic in ("a.0", "a.1"):
            pub.unretain(topic)
            pub.publish(topic, b"new")
        assert [*replays_of(pub)._overtaken] == ["a.1"]
        pub.publish("a.1", b"newest", retain=True)
        contents = []
        while True:
            (each,) = answers(by_hand, 1)
            if not isinstance(each, Replay):
                contents.append(each.publication if isinstance(each, Positioned) else each)
            elif each.end:
                break
        assert [one[5:] for one in contents if one[:5] == b"\0\3a.1"] == [b"new", b"newest"]
        wait_until(lambda: is_idle(pub))
        assert not replays_of(pub)._overtaken


def test_another_replay_may_begin_while_the_many_patterns_of_one_that_has_gone_are_forgotten() -> None:
    history = MemoryHistory("a.>")
    with Pub(history=history) as pub, Sub() as sub:
        sub.on_gap(lambda gap: None)
        sub.dial(pub.listen("inproc://gone").address)
        for number in range(1000):
            sub.subscribe(f"a.{number}")
        sub.subscribe("a.*", LONG)
        wait_until(lambda: len(replays_of(pub)._live) == 1001)
        for pipe in [*pub.pipes.values()]:
            pipe.close()
        assert replays_of(pub)._gone
        pub.replay_behind(0, [f"a.{number}" for number in range(1000)])
        wait_until(lambda: not replays_of(pub)._gone)


def test_of_many_replays_for_a_peer_that_does_not_read_few_begin_and_all_come_when_it_reads() -> None:
    """A publication looks at all replays that have begun and match it."""
    count = 200
    patterns = ["a.*.*", *(f"*.*.{number}" for number in range(count - 1))]
    history = Watched("a.>")
    options = {"socket.send_queue_size": 2}
    with Pub(options, history=history) as pub, hand("many", pub, **{"socket.recv_queue_size": 1}) as by_hand:
        # They are found in portions, so the next one has its turn before the first one sends.
        for number in range(2 * PORTION):
            pub.publish(f"a.b.{number}", b"0")
        ask(by_hand, *(Ask(number, False, True, (Position(history.epoch, 0),), pattern)
                       for number, pattern in enumerate(patterns, 1)))  # fmt: skip
        wait_until(lambda: pub.subscriptions == count)
        replays = replays_of(pub)
        wait_until(lambda: any(pipe.full for pipe in pub.pipes.values()))
        # All others had their turn.
        gevent.idle()
        assert 1 <= len(replays._running) <= 16 < len(next(iter(replays.queues.values())))
        pub.publish("a.b.0", b"1")
        found: dict[int, list[bytes]] = {number: [] for number in range(1, count + 1)}
        ends = 0
        while ends < count:
            (answer,) = answers(by_hand, 1)
            if isinstance(answer, Replay):
                ends += answer.end
            elif isinstance(answer, Positioned) and answer.id:
                found[answer.id].append(answer.publication[-1:])
        assert found.pop(1) == [b"0"] * 2 * PORTION + [b"1"]
        assert found.pop(2) == [b"0", b"1"]
        assert all(contents == [b"0"] for contents in found.values())
        wait_until(lambda: is_idle(pub))
