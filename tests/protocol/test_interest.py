"""Who is there at a Pub: interest, waiting for subscribers, presence, and who is slow."""

from __future__ import annotations

import random
from contextlib import ExitStack

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import BadTopic, Closed, Timeout
from gmultisocket.protocol import Presence, Pub, RemoteSub, Sub
from gmultisocket.protocol import subscribers as subscribers_module
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, Message, encode
from tests.addresses import plain_connection
from tests.protocol.net import Net

LONG = 20.0


# Interest


def test_the_first_subscriber_and_the_last_one_of_a_pattern_are_told(net: Net) -> None:
    told: list[tuple[str, bool]] = []
    with Pub() as pub, Sub() as one, Sub() as other:
        net.connect(pub, one, other)
        one.subscribe("before", LONG)
        end = pub.on_interest(lambda pattern, wanted: told.append((pattern, wanted)))
        wait_until(lambda: told == [("before", True)])
        for sub in (one, other):
            sub.subscribe("a.*", LONG)
        one.subscribe("a.b", LONG)
        wait_until(lambda: told[1:] == [("a.*", True), ("a.b", True)])
        one.unsubscribe("a.*")
        one.unsubscribe("a.b")
        wait_until(lambda: told[3:] == [("a.b", False)])
        one.close()
        other.close()
        wait_until(lambda: sorted(told[4:]) == [("a.*", False), ("before", False)])
        end()
        assert not pub._subscribers.interest


def test_a_callback_for_interest_hears_the_last_change_of_many(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, bool]] = []
    held = gevent.event.Event()

    def callback(pattern: str, wanted: bool) -> None:
        held.wait(LONG)
        told.append((pattern, wanted))
        if pattern == "a":
            raise RuntimeError("the callback of the test fails")

    with Pub() as pub, Sub() as sub:
        sub.dial(pub.listen("inproc://interest").address)
        pub.on_interest(callback)
        sub.subscribe("a", LONG)
        for _ in range(3):
            sub.subscribe("b", LONG)
            sub.unsubscribe("b")
            sub.subscribe("c", LONG)
            wait_until(lambda: pub.reach("b") == 0)
        held.set()
        wait_until(lambda: told == [("a", True), ("c", True)])
        sub.subscribe("d", LONG)
        wait_until(lambda: told[2:] == [("d", True)])


def test_a_slow_callback_keeps_nothing_of_patterns_that_came_and_went() -> None:
    told: list[tuple[str, bool]] = []
    held = gevent.event.Event()

    def callback(pattern: str, wanted: bool) -> None:
        told.append((pattern, wanted))
        held.wait(LONG)

    with Pub() as pub, Socket({"socket.no_recv": True}) as by_hand:
        by_hand.dial(pub.listen("tcp://127.0.0.1:0").address)
        pub.on_interest(callback)
        for kind, pattern in [
            (b"\x01", "first"),
            *((kind, str(number)) for number in range(1000) for kind in (b"\x01", b"\x00")),
            (b"\x01", "last"),
        ]:
            by_hand.send_msg(Message(CONTROL | TO_ALL, content=kind + pattern.encode()))
        pub.wait_subscribers("last", timeout=LONG)
        (watcher,) = pub._subscribers.interest._watchers
        assert list(watcher.callbacks._queue) == ["last"]
        held.set()
        wait_until(lambda: told == [("first", True), ("last", True)])


@pytest.mark.parametrize("seed", range(5))
def test_interest_is_what_the_subscribers_have_whatever_happens(seed: int) -> None:
    choose = random.Random(seed)
    topic = ".".join("abcdefghijk")
    wanted: set[str] = set()

    def callback(pattern: str, is_wanted: bool) -> None:
        assert is_wanted is (pattern not in wanted)
        (wanted.add if is_wanted else wanted.discard)(pattern)

    with Pub() as pub, ExitStack() as stack:
        address = pub.listen("inproc://whatever").address
        pub.on_interest(callback)
        peers = [stack.enter_context(Socket({"socket.no_recv": True})) for _ in range(4)]
        for peer in peers:
            peer.dial(address)
        patterns = [".".join(choose.choice([token, "*"]) for token in topic.split(".")) for _ in range(1500)]
        for _ in range(6000):
            peer = choose.choice(peers)
            kind, pattern = choose.choice((b"\x01", b"\x01", b"\x00")), choose.choice(patterns)
            source = choose.choice((b"", b"", (1).to_bytes(4, "big")))
            peer.send_msg(Message(CONTROL | TO_ALL, source=source, content=kind + pattern.encode()), LONG)
            if choose.random() < 0.002:
                # One that makes searches long gets everything, and has its subscriptions all the same.
                pub._subscribers.topics.clear()
                pub.reach(topic)
            if choose.random() < 0.001:
                choose.choice([*pub.pipes.values()]).close()
                wait_until(lambda: len(pub.pipes) == 4, LONG)

        def present() -> set[str]:
            return {
                pattern
                for each in pub._peers.values()
                for subscriber in each.subscribers.values()
                for pattern in subscriber.patterns
            }

        wait_until(lambda: wanted == present() and not pub._subscribers._leaving, LONG)
        for peer in peers:
            peer.close()
        wait_until(lambda: not wanted and not pub._subscribers.interest._counts, LONG)


def test_interest_that_begins_while_a_peer_leaves_counts_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers_module, "_PORTION", 3)
    told: list[tuple[str, bool]] = []
    with Pub() as pub, Sub() as staying, Socket({"socket.no_recv": True}) as going:
        address = pub.listen("inproc://leaving-meanwhile").address
        going.dial(address)
        for number in range(100):
            going.send_msg(Message(CONTROL | TO_ALL, content=b"\x01a.%d" % number), LONG)
        wait_until(lambda: pub.subscriptions == 100)
        staying.dial(address)
        for number in range(0, 100, 10):
            staying.subscribe(f"a.{number}", LONG)
        next(pipe for pipe in pub.pipes.values() if len(pub._peers[pipe.id].subscribers) and
             pub._peers[pipe.id].count == 100).close()  # fmt: skip
        assert pub._subscribers._leaving
        pub.on_interest(lambda pattern, wanted: told.append((pattern, wanted)))
        wait_until(lambda: not pub._subscribers._leaving and len(pub._subscribers.interest._counts) == 10)
        gevent.idle()
        now = dict(told)
        assert sorted(pattern for pattern, wanted in now.items() if wanted) == [f"a.{n}" for n in range(0, 100, 10)]


# Waiting


def test_a_pub_waits_for_the_subscribers_of_a_topic(net: Net) -> None:
    with Pub() as pub, ExitStack() as stack:
        subs = [stack.enter_context(Sub()) for _ in range(4)]
        net.connect(pub, *subs)
        with pytest.raises(Timeout) as caught:
            pub.wait_subscribers("a.b", timeout=0.01)
        assert caught.value.seconds == 0.01
        subs[0].subscribe("a.*", LONG)
        pub.wait_subscribers("a.b", timeout=0)
        waiting = gevent.spawn(pub.wait_subscribers, "a.b", 3, LONG)
        # One subscriber, however many of its patterns match; and one that matches nothing.
        subs[0].subscribe("*.b", LONG)
        subs[1].subscribe("b.*", LONG)
        subs[2].subscribe(">", LONG)
        assert not waiting.ready()
        # One that has left does not count.
        subs[2].unsubscribe(">")
        wait_until(lambda: pub.subscriptions == 3)
        subs[3].subscribe("a.b", LONG)
        assert not waiting.ready()
        subs[2].subscribe("a.>", LONG)
        waiting.get(timeout=LONG)
        assert not pub._subscribers.arrivals.waiting
        with pytest.raises(BadTopic):
            pub.wait_subscribers("a.*")


def test_close_ends_the_waiting_for_subscribers() -> None:
    with Pub() as pub:
        waiting = gevent.spawn(pub.wait_subscribers, "a")
        gevent.idle()
        pub.close()
        with pytest.raises(Closed):
            waiting.get(timeout=LONG)
        with pytest.raises(Closed):
            pub.wait_subscribers("a", timeout=0)
        with pytest.raises(Closed):
            pub.on_interest(lambda pattern, wanted: None)


# Presence


def test_presence_counts_subscribers_and_names_them_only_if_told_how(net: Net) -> None:
    names: dict[int, str] = {}

    def name_of(subscriber: RemoteSub) -> str:
        return names.get(subscriber.pipe.id, "?") if subscriber.direct else "behind a switch"

    with Pub() as plain, Pub(presence_names=name_of) as pub, Sub() as one, Sub() as other:
        net.connect(pub, one, other)
        names.update(zip(pub.pipes, ("one", "other"), strict=False))
        one.subscribe("rooms.7", LONG)
        one.subscribe("rooms.8", LONG)
        other.subscribe("rooms.*", LONG)
        everybody = ("behind a switch",) if net.switches else ("one", "other")
        for pattern in ("rooms.7", "rooms.*", ">"):
            assert pub.presence(pattern) == Presence(2, everybody)
        assert pub.presence("rooms.9").subscribers == 1
        assert pub.presence("halls.*") == (0, ())
        assert plain.presence(">") == (0, None)
        with pytest.raises(BadTopic):
            pub.presence("a..b")


# Slow ones


def test_the_slowest_pipes_are_those_with_most_to_send_and_bytes_in_the_kernel_count(net: Net) -> None:
    with Pub() as pub, Sub() as quick:
        net.connect(pub, quick)
        assert pub.slowest(5) == []
        address = pub.listen("tcp://127.0.0.1:0").address
        with plain_connection(address) as less, plain_connection(address) as more:
            for peer, pattern in ((less, b"\x01less"), (more, b"\x01more")):
                peer.sendall(encode(Message(flags=CONTROL | TO_ALL, content=pattern)))
            pub.wait_subscribers("less", timeout=LONG)
            pub.wait_subscribers("more", timeout=LONG)
            pipes = {}
            for topic in ("less", "more"):
                (pipes[topic],) = pub._groups.get(topic, pub._find(topic))[1]
            while not pipes["less"].unacknowledged:
                pub.publish("less", bytes(100_000))
                gevent.sleep(0)
            assert pub.slowest(5) == [pipes["less"]]
            while not pipes["more"].full:
                pub.publish("more", bytes(100_000))
                gevent.sleep(0)
            assert pipes["more"].unacknowledged > 0
            assert pub.slowest(5) == [pipes["more"], pipes["less"]]
            assert pub.slowest(1) == [pipes["more"]]
        wait_until(lambda: pub.slowest(5) == [])
        assert pipes["more"].unacknowledged == 0
