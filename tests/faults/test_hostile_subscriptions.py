"""Subscribers that ask for too much: memory and work are bounded, and others get what they asked for, and no more."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from gmultisocket import Message, Pipe, Socket
from gmultisocket.errors import Timeout
from gmultisocket.protocol import Pub, Sub
from gmultisocket.protocol import sub as sub_module
from gmultisocket.protocol import subscribers as subscribers_module
from gmultisocket.protocol import upstream as upstream_module
from gmultisocket.protocol.subscribers import _cost
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, TO_DEST
from tests import addresses

LONG = 20.0
TRANSPORTS = ["inproc", "ipc", "tcp", "ws"]


def deep(number: int, tokens: int = 64) -> str:
    return ".".join([f"p{number}", *"t" * (tokens - 1)])


def forms(topic: str, last: str = "") -> Iterator[str]:
    """Yield all patterns with * that match a topic; with ``last`` behind them they do not match it any more."""
    for stars in itertools.product((False, True), repeat=topic.count(".") + 1):
        tokens = ["*" if star else token for star, token in zip(stars, topic.split("."), strict=True)]
        yield ".".join([*tokens, *([last] if last else [])])


def say(by_hand: Socket, kind: bytes, pattern: str, source: bytes = b"") -> None:
    by_hand.send_msg(Message(CONTROL | TO_ALL, source=source, content=kind + pattern.encode()), LONG)


def only_pipe(pub: Pub) -> Pipe:
    (pipe,) = pub.pipes.values()
    return pipe


# Memory


@pytest.mark.parametrize("sources", [1, 1000])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_memory_of_the_patterns_of_a_pipe_is_bounded(transport: str, sources: int, tmp_path: Path) -> None:
    limit = 500_000
    options: dict[str, Any] = {"protocol.pubsub.max_pattern_memory": limit}
    with Pub(options) as pub, Socket({"socket.no_recv": True}) as greedy, Sub() as honest:
        address = pub.listen(addresses.TRANSPORTS[transport](tmp_path)).address
        greedy.dial(address)
        pub.wait_pipes(1, LONG)
        pipe = only_pipe(pub)
        for number in range(100):
            say(greedy, b"\x01", deep(number), (number % sources + 1).to_bytes(4, "big"))
        wait_until(lambda: pub.counters.drops.get("refused subscription", 0) + pub.subscriptions == 100)
        peer = pub._peers[pipe.id]
        assert limit - 2 * _cost(deep(0)) < peer.memory <= limit
        assert peer.count == pub.subscriptions < limit // _cost(deep(0)) + 1
        honest.dial(address)
        honest.subscribe("honest.*", LONG)
        assert pub.publish("honest.1", b"x") == 1
        assert honest.recv(LONG) == ("honest.1", b"x")
        # What is unsubscribed makes space.
        refused = pub.counters.drops["refused subscription"]
        for number in range(100):
            say(greedy, b"\x00", deep(number), (number % sources + 1).to_bytes(4, "big"))
        wait_until(lambda: pub.subscriptions == 1)
        assert peer.memory == 0 and not peer.subscribers
        say(greedy, b"\x01", deep(0))
        wait_until(lambda: pub.subscriptions == 2)
        assert pub.counters.drops["refused subscription"] == refused
        greedy.close()
        wait_until(lambda: pub.subscriptions == 1)
        assert pub._subscribers.memory == pub._peers[only_pipe(pub).id].memory


@pytest.mark.parametrize("limit", [("max_total_patterns", 10), ("max_total_pattern_memory", 10 * 1326 + 100)])
def test_the_patterns_of_all_pipes_together_are_bounded(limit: tuple[str, int]) -> None:
    options: dict[str, Any] = {f"protocol.pubsub.{limit[0]}": limit[1]}
    with Pub(options) as pub:
        address = pub.listen("inproc://together").address
        # Without repeats: those that are refused must not take a place that becomes free.
        subs = [Sub({"protocol.pubsub.refresh_interval": 0.0}) for _ in range(15)]  # type: ignore[arg-type]
        for number, sub in enumerate(subs):
            sub.dial(address)
            sub.subscribe(f"orders.{number:02}.new")
        wait_until(lambda: pub.counters.drops.get("refused subscription", 0) + pub.subscriptions == 15)
        assert pub.subscriptions == 10
        subs[0].close()
        wait_until(lambda: pub.subscriptions == 9)
        subs[14].subscribe("orders.15.new", LONG)
        assert pub.publish("orders.15.new", b"") == 1
        for sub in subs:
            sub.close()
        wait_until(lambda: pub._subscribers.memory == 0 == pub.subscriptions)


def test_acknowledgements_for_a_peer_that_does_not_read_are_bounded_by_its_subscriptions() -> None:
    options: dict[str, Any] = {"protocol.pubsub.max_patterns": 50, "socket.send_queue_size": 1}
    with Pub(options) as pub, Socket({"socket.recv_queue_size": 1}) as stuck:
        stuck.dial(pub.listen("inproc://unread").address)
        pipe = only_pipe(pub)
        for number in range(1000):
            say(stuck, b"\x01", f"a.{number}")
            if number % 2:
                say(stuck, b"\x00", f"a.{number}")
            queue = pub._outbox.queues.get(pipe)
            waiting = [] if queue is None else [message.content[:1] for message in queue.messages.values()]
            # Refusals are bounded by what they take.
            assert waiting.count(b"\x02") <= 50


# Many at once


@pytest.mark.parametrize("sources", [1, 100])
def test_a_pipe_with_many_patterns_is_forgotten_at_once_and_removed_in_portions(
    sources: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers_module, "_PORTION", 7)
    with Pub() as pub, Socket({"socket.no_recv": True}) as going, Sub() as staying:
        address = pub.listen("inproc://going").address
        going.dial(address)
        pipe = only_pipe(pub)
        for number in range(100):
            say(going, b"\x01", f"a.{number}", (number % sources + 1).to_bytes(4, "big"))
        wait_until(lambda: pub.subscriptions == 100)
        staying.dial(address)
        staying.subscribe("a.5", LONG)
        assert pub.publish("a.5", b"") == 2
        pipe.close()
        # No other greenlet has run.
        subscribers = pub._subscribers
        assert pub.subscriptions == 1
        assert len(subscribers._index) == 101 - 7
        assert [pub.reach(f"a.{number}") for number in range(100)] == [0] * 5 + [1] + [0] * 94
        wait_until(lambda: len(subscribers._index) == 1 and subscribers._remover is None)
        assert subscribers.memory == pub._peers[only_pipe(pub).id].memory
        assert [pub.reach(f"a.{number}") for number in range(10)] == [0] * 5 + [1] + [0] * 4


def test_subscriptions_that_come_while_the_same_ones_are_removed_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers_module, "_PORTION", 3)
    with Pub() as pub, Socket({"socket.no_recv": True}) as switch:
        switch.dial(pub.listen("inproc://same").address)
        peer = pub._peers[only_pipe(pub).id]
        for number in range(50):
            say(switch, b"\x01", f"a.{number}", b"\0\0\0\1")
        wait_until(lambda: pub.subscriptions == 50)
        source = peer.behind_switch()[0]
        pub._subscribers.remove_subscriber(peer, source)
        for number in range(50):
            say(switch, b"\x01", f"a.{number}", b"\0\0\0\1")
        wait_until(lambda: pub.subscriptions == 50 and not pub._subscribers._leaving)
        assert [pub.reach(f"a.{number}") for number in range(50)] == [1] * 50
        assert len(pub._subscribers._index) == 50 and pub._subscribers.memory == peer.memory


def test_a_sub_with_many_patterns_subscribes_in_portions_and_waits_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sub_module, "_PORTION", 10)
    with Pub() as pub, Sub() as sub:
        for number in range(100):
            sub.subscribe(f"a.{number}")
        sub.dial(pub.listen("inproc://many").address)
        (upstream,) = sub._upstreams.values()
        unsent = list(upstream.unsent)
        assert 50 < len(unsent) <= 90
        assert unsent == [f"a.{number}" for number in range(100)][-len(unsent) :]
        sub.unsubscribe("a.98")
        # It was subscribed to before, and is not sent yet.
        sub.subscribe("a.99", LONG)
        assert pub.reach("a.99") == 1
        wait_until(lambda: pub.subscriptions == 99)
        assert not upstream.unsent and pub.reach("a.98") == 0
        sub.subscribe("b", LONG)
        only_pipe(pub).close()
        wait_until(lambda: pub.subscriptions == 100)


def test_publishers_that_a_peer_makes_up_cost_a_bounded_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "_MAX_AWAITED", 500)
    with Socket({"socket.recv_queue_size": 10_000}) as by_hand, Sub() as sub:
        sub.dial(by_hand.listen("inproc://made-up").address)
        sub.subscribe("a")
        first = by_hand.recv_msg(LONG)
        for number in range(1, 101):
            source = number.to_bytes(4, "big")
            message = Message(CONTROL | TO_DEST, source=source, destination=first.source, content=b"\x02a")
            by_hand.send_msg(message)
        (upstream,) = sub._upstreams.values()
        wait_until(lambda: len(upstream.publishers) == 100)
        for number in range(1000):
            sub.subscribe(f"b.{number}")
        entries = sum(len(awaited) for awaited in upstream.awaited.values())
        assert entries == upstream._entries <= 500 + 1000
        with pytest.raises(Timeout):
            sub.subscribe("b.0", 0.01)
        assert upstream._entries == sum(len(awaited) for awaited in upstream.awaited.values())
        sub.close(0)


# Work


def hostile(by_hand: Socket, pub: Pub, patterns: list[str]) -> None:
    before = pub.subscriptions
    for number, pattern in enumerate(patterns):
        say(by_hand, b"\x01", pattern)
        if number % 100 == 0:
            gevent.sleep(0)
    wait_until(lambda: pub.subscriptions == before + len(patterns), LONG)


@pytest.mark.parametrize("last", ["", "z"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_peer_that_makes_searches_long_gets_everything_and_others_get_what_they_want(
    transport: str, last: str, tmp_path: Path
) -> None:
    topic = ".".join("abcdefghijk")
    with Pub() as pub, Socket({"socket.no_recv": True}) as by_hand, Sub() as honest, Sub() as other:
        address = pub.listen(addresses.TRANSPORTS[transport](tmp_path)).address
        by_hand.dial(address)
        pub.wait_pipes(1, LONG)
        pipe = only_pipe(pub)
        patterns = list(forms(topic, last))
        hostile(by_hand, pub, patterns)
        for sub in (honest, other):
            sub.dial(address)
        honest.subscribe("a.>", LONG)
        other.subscribe("other", LONG)
        asked = topic + ".y" if last else topic
        assert pub.publish(asked, b"1") == 2
        peer = pub._peers[pipe.id]
        subscribers = pub._subscribers
        assert peer.takes_all and subscribers.relieved == 1
        wait_until(lambda: not subscribers._leaving)
        # One for each pattern but this one.
        assert len(subscribers._index) == 3 and pub.subscriptions == len(patterns) + 2
        assert pub.publish("other", b"2") == 2
        assert pub.publish("none", b"3") == 1
        assert honest.recv(LONG) == (asked, b"1")
        assert other.recv(LONG) == ("other", b"2")
        # A search visits few nodes now, whatever the peer subscribes to, and subscribing changes nothing.
        pub.reach(asked + ".more")
        assert subscribers._index.visits <= 24
        say(by_hand, b"\x00", patterns[0])
        say(by_hand, b"\x01", patterns[0] + ".x")
        wait_until(lambda: patterns[0] + ".x" in next(iter(peer.subscribers.values())).patterns)
        assert len(subscribers._index) == 3
        # When it has unsubscribed from everything, it begins again.
        for pattern in [*patterns[1:], patterns[0] + ".x"]:
            say(by_hand, b"\x00", pattern)
        wait_until(lambda: pub.subscriptions == 2, LONG)
        assert not peer.takes_all and len(subscribers._index) == 2
        assert pub.publish("other", b"4") == 1
        say(by_hand, b"\x01", "none")
        wait_until(lambda: pub.subscriptions == 3)
        assert (pub.reach("none"), pub.reach("other")) == (1, 1)


def test_a_peer_that_gets_everything_may_go_at_any_time() -> None:
    topic = ".".join("abcdefghijk")
    with Pub() as pub, Sub() as honest:
        address = pub.listen("inproc://all").address
        honest.dial(address)
        honest.subscribe(topic, LONG)
        for drained in (False, True):
            with Socket({"socket.no_recv": True}) as by_hand:
                by_hand.dial(address)
                hostile(by_hand, pub, list(forms(topic)))
                assert pub.publish(topic, b"") == 2
                if drained:
                    wait_until(lambda: not pub._subscribers._leaving)
            wait_until(lambda: len(pub.pipes) == 1)
            assert pub.subscriptions == 1 and pub.publish(topic, b"") == 1
            wait_until(lambda: len(pub._subscribers._index) == 1)
            assert pub._subscribers.memory == pub._peers[only_pipe(pub).id].memory


def test_several_peers_that_make_searches_long_are_found_one_after_the_other() -> None:
    topic = ".".join("abcdefghijk")
    patterns = list(forms(topic))
    with Pub() as pub, Sub() as honest:
        address = pub.listen("inproc://several").address
        honest.dial(address)
        honest.subscribe(topic, LONG)
        honest_id = only_pipe(pub).id
        peers = [Socket({"socket.no_recv": True}) for _ in range(4)]
        for number, by_hand in enumerate(peers):
            by_hand.dial(address)
            hostile(by_hand, pub, patterns[number::4])
        for _ in range(4):
            pub._subscribers.topics.clear()
            pub.reach(topic)
            wait_until(lambda: not pub._subscribers._leaving)
        pub._subscribers.topics.clear()
        pub.reach(topic)
        assert pub._subscribers._index.visits <= 1024
        assert pub._subscribers.relieved >= 2 and not pub._peers[honest_id].takes_all
        for by_hand in peers:
            by_hand.close()


def test_toggling_a_subscription_makes_no_other_topic_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pub() as pub, Sub() as honest, Socket() as toggler:
        address = pub.listen("inproc://toggling").address
        honest.dial(address)
        honest.subscribe("orders.*", LONG)
        toggler.dial(address)
        topics = [f"orders.{number}" for number in range(100)]
        assert [pub.publish(topic, b"") for topic in topics] == [1] * 100
        for pattern in ("bills.*", "orders.*.*", "orders.1000", "*.*.*"):
            for kind in (b"\x01", b"\x00") * 5:
                say(toggler, kind, pattern)
            wait_until(lambda: pub.subscriptions == 1)
            assert set(pub._groups) == set(topics)
        say(toggler, b"\x01", "orders.7")
        wait_until(lambda: pub.subscriptions == 2)
        assert set(topics) - set(pub._groups) == {"orders.7"}
        assert [pub.publish(topic, b"") for topic in topics[6:9]] == [1, 2, 1]
