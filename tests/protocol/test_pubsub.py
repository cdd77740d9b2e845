"""Publish and subscribe: who gets what, through whatever is between, and what is lost when."""

from __future__ import annotations

import logging
import random
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Pipe, Socket, Switch
from gmultisocket.core.pipes.bytespipe import BytesPipe
from gmultisocket.errors import BadTopic, Closed, MessageTooLong, SubscriptionRefused, Timeout
from gmultisocket.loop import yielding
from gmultisocket.protocol import Pub, Sub
from gmultisocket.protocol import gatekeeper as gatekeeper_module
from gmultisocket.protocol.memoryhistory import MemoryHistory
from gmultisocket.protocol.pubsubwire import Ask
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, TO_DEST, Decoder, Message, encode
from tests.addresses import plain_connection
from tests.looks import Looks
from tests.protocol.net import Net
from tests.protocol.pubsubvectors import publication

QUICK = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.02}
#: For what happens behind switches, where nobody is told.
REFRESHING = {**QUICK, "protocol.pubsub.refresh_interval": 0.05}
LONG = 20.0


def hear(by_hand: Socket) -> Message:
    """Return what a Pub sends next, other than "who is there?"."""
    while (message := by_hand.recv_msg(LONG)).content == b"\x04":
        pass
    return message


def only_pipe(end: Pub | Sub | Socket) -> Pipe:
    (pipe,) = end.pipes.values()
    return pipe


@contextmanager
def switch(back_address: str, front_address: str) -> Iterator[Socket]:
    """Run a switch. Gives its front socket."""
    with Socket() as back, Socket() as front, Switch(back, front):
        back.listen(back_address)
        front.listen(front_address)
        yield front


def received(sub: Sub, until: bytes = b"end") -> list[tuple[str, bytes]]:
    """Return what a Sub receives before a content that is published last."""
    got = []
    while (publication := sub.recv(LONG))[1] != until:
        got.append(publication)
    return got


# Many Subs behind a switch

_MANY = 150


def test_many_subs_lose_their_switch_and_come_back_in_small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    # No time at all for greenlets that are woken at once: only the number that goes on before the time is checked.
    monkeypatch.setattr(yielding, "MAX_TURN", 0.0)
    turns: dict[str, list[int]] = {"add": [], "remove": []}
    on_pipe = Sub._on_pipe

    def counting(sub: Sub, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        turns[kind].append(looks.count)
        on_pipe(sub, kind, pipe)

    monkeypatch.setattr(Sub, "_on_pipe", counting)
    with ExitStack() as stack:
        looks = stack.enter_context(Looks())
        # Nobody repeats anything, however long this takes: the Pub asks who is there.
        options = {**QUICK, "protocol.pubsub.refresh_interval": 0.0}
        subs = [stack.enter_context(Sub(options)) for _ in range(_MANY)]
        for number, sub in enumerate(subs):
            sub.subscribe(f"topic.{number}")
        pub = stack.enter_context(Pub(options))
        with Socket() as back, Socket() as front, Switch(back, front):
            addresses = back.listen("tcp://127.0.0.1:0").address, front.listen("tcp://127.0.0.1:0").address
            for sub in subs:
                sub.dial(addresses[1])
            # Here nobody repeats anything soon: the Pub asks who is there.
            pub.dial(addresses[0])
            wait_until(lambda: pub.subscriptions == _MANY, LONG)
            turns["add"].clear()
        wait_until(lambda: len(turns["remove"]) >= _MANY, LONG)
        with switch(*addresses):
            wait_until(lambda: pub.subscriptions == _MANY, LONG)
            wait_until(lambda: len(turns["add"]) >= _MANY, LONG)
            for kind in turns:
                assert max(Counter(turns[kind]).values()) <= 40, kind
            # 0x01 and 0x08, and once more for the Pub if it has come later.
            assert max(only_pipe(sub).messages_sent for sub in subs) <= 4


# Everywhere


def test_what_is_published_reaches_those_who_subscribed(net: Net) -> None:
    with Pub() as pub, Sub() as orders, Sub() as all_of_it, Sub() as nothing:
        net.connect(pub, orders, all_of_it, nothing)
        orders.subscribe("orders.*.created", LONG)
        all_of_it.subscribe(">", LONG)
        nothing.subscribe("something.else", LONG)
        pub.publish("orders.eu.created", b"1")
        pub.publish("orders.eu", b"2")
        pub.publish("orders.us.created", b"")
        for sub in (orders, all_of_it, nothing):
            sub.subscribe("end", LONG)
        pub.publish("end", b"end")
        assert received(orders) == [("orders.eu.created", b"1"), ("orders.us.created", b"")]
        assert received(all_of_it) == [("orders.eu.created", b"1"), ("orders.eu", b"2"), ("orders.us.created", b"")]
        assert received(nothing) == []


def test_a_pub_may_dial_and_a_sub_listen(net: Net) -> None:
    with Sub() as sub, Pub() as one, Pub() as other:
        net.connect(sub, one, other)
        sub.subscribe("a", LONG)
        wait_until(lambda: one.subscriptions == other.subscriptions == 1)
        one.publish("a", b"one")
        other.publish("a", b"other")
        assert {sub.recv(LONG), sub.recv(LONG)} == {("a", b"one"), ("a", b"other")}


def test_what_is_published_after_subscribe_has_returned_is_never_missed(net: Net) -> None:
    with Pub() as pub, Sub() as sub:
        net.connect(pub, sub)
        for number in range(100):
            sub.subscribe(f"topic.{number}", LONG)
            assert pub.publish(f"topic.{number}", b"%d" % number) == 1
            assert sub.recv(LONG) == (f"topic.{number}", b"%d" % number)


def test_a_message_that_several_patterns_match_comes_once(net: Net) -> None:
    with Pub() as pub, Sub() as sub:
        net.connect(pub, sub)
        for pattern in ("a.b", "a.*", "*.b", "a.>", ">"):
            sub.subscribe(pattern, LONG)
        assert pub.subscriptions == 5
        assert pub.publish("a.b", b"once") == 1
        pub.publish("z", b"end")
        assert received(sub) == [("a.b", b"once")]


def test_unsubscribe_stops_what_no_other_pattern_matches(net: Net) -> None:
    with Pub() as pub, Sub() as sub:
        net.connect(pub, sub)
        sub.subscribe("a.*", LONG)
        sub.subscribe("a.b", LONG)
        sub.subscribe("end", LONG)
        pub.publish("a.c", b"had arrived")
        wait_until(lambda: sub.socket.queued == 1)
        assert sub.unsubscribe("a.*")
        assert not sub.unsubscribe("a.*")
        assert sub.patterns == ("a.b", "end")
        pub.publish("a.c", b"maybe on its way")
        wait_until(lambda: pub.subscriptions == 2)
        assert pub.publish("a.c", b"nobody's") == 0
        assert pub.publish("a.b", b"still wanted") == 1
        pub.publish("end", b"end")
        assert received(sub) == [("a.b", b"still wanted")]


def test_unsubscribing_from_all_leaves_nothing_behind(net: Net) -> None:
    with Pub() as pub, Sub() as sub:
        net.connect(pub, sub)
        for pattern in ("a", "b.*"):
            sub.subscribe(pattern, LONG)
        for pattern in sub.patterns:
            sub.unsubscribe(pattern)
        wait_until(lambda: pub.subscriptions == 0)
        sub.subscribe("a", LONG)
        assert pub.publish("a", b"again") == 1
        assert sub.recv(LONG) == ("a", b"again")


def test_a_sub_as_written_by_hand(net: Net) -> None:
    with Pub() as pub, Socket() as by_hand:
        net.connect(pub, by_hand)
        by_hand.send_msg(Message(flags=CONTROL | TO_ALL, content=b"\x01a.*"))
        acknowledgement = hear(by_hand)
        assert (acknowledgement.flags, acknowledgement.destination) == (CONTROL | TO_DEST, b"")
        assert acknowledgement.content == b"\x02a.*"
        assert pub.publish("a.ü", b"content") == 1
        message = hear(by_hand)
        assert (message.flags, message.content) == (TO_ALL, publication("a.ü", b"content"))
        by_hand.send_msg(Message(flags=CONTROL | TO_ALL, content=b"\x00a.*"))
        wait_until(lambda: pub.subscriptions == 0)
        assert pub.publish("a.ü", b"nobody's") == 0


def test_a_pub_as_written_by_hand(net: Net) -> None:
    with Socket() as by_hand, Sub() as sub:
        net.connect(by_hand, sub)
        waiting = gevent.spawn(sub.subscribe, "a.>", LONG)
        asked = by_hand.recv_msg(LONG)
        assert (asked.flags, asked.content) == (CONTROL | TO_ALL, b"\x01a.>")
        assert by_hand.recv_msg(LONG).content == b"\x08"
        assert not waiting.ready()
        by_hand.send_msg(Message(flags=CONTROL | TO_DEST, destination=asked.source, content=b"\x02a.>"))
        waiting.get(timeout=LONG)
        by_hand.send_all(publication("a.b", b"content"))
        by_hand.send_all(publication("b", b"not subscribed to"))
        by_hand.send_all(publication("a.c", b""))
        assert [sub.recv(LONG), sub.recv(LONG)] == [("a.b", b"content"), ("a.c", b"")]
        assert sub.counters.drops == {"not subscribed": 1}
        sub.unsubscribe("a.>")
        assert by_hand.recv_msg(LONG).content == b"\x00a.>"


def test_a_sub_that_was_cut_off_subscribes_again(net: Net) -> None:
    with Pub(QUICK) as pub, Sub(QUICK) as sub:
        net.connect(pub, sub)
        sub.subscribe("a.*", LONG)
        for number in range(3):
            before = only_pipe(sub)
            before.close("cut off by the test")
            wait_until(lambda before=before: sub.pipes and before not in sub.pipes.values())  # type: ignore[misc]
            sub.subscribe("a.*", LONG)
            pub.publish("a.b", b"%d" % number)
            assert sub.recv(LONG) == ("a.b", b"%d" % number)


def test_a_publisher_that_was_restarted_is_subscribed_to_again(direct: Net) -> None:
    address = direct.address()
    with Sub({**QUICK, "connector.dialer.dial_async": True}) as sub:
        sub.subscribe("a.*")
        for number in range(3):
            with Pub() as pub:
                address = pub.listen(address).address
                if not number:
                    sub.dial(address)
                wait_until(lambda pub=pub: pub.subscriptions == 1)  # type: ignore[misc]
                assert pub.publish("a.b", b"%d" % number) == 1
                assert sub.recv(LONG) == ("a.b", b"%d" % number)


# Many


def test_random_subscriptions_get_what_they_match_and_nothing_else(net: Net) -> None:
    choose = random.Random(7)
    tokens = ["a", "b", "c"]
    with Pub() as pub, ExitStack() as stack:
        subs = [stack.enter_context(Sub()) for _ in range(5)]
        net.connect(pub, *subs)
        patterns = [{".".join(choose.choices([*tokens, "*"], k=choose.randint(1, 3))) for _ in range(3)} for _ in subs]
        for sub, wanted in zip(subs, patterns, strict=True):
            for pattern in (*wanted, "end"):
                sub.subscribe(pattern, LONG)
        topics = [".".join(choose.choices(tokens, k=choose.randint(1, 3))) for _ in range(60)]
        for topic in topics:
            pub.publish(topic, topic.encode())
        pub.publish("end", b"end")
        for sub, wanted in zip(subs, patterns, strict=True):
            expected = [topic for topic in topics if any(plain_match(pattern, topic) for pattern in wanted)]
            assert [topic for topic, _ in received(sub)] == expected


def plain_match(pattern: str, topic: str) -> bool:
    wanted, tokens = pattern.split("."), topic.split(".")
    return len(wanted) == len(tokens) and all(want in ("*", token) for want, token in zip(wanted, tokens, strict=True))


@contextmanager
def many_subs(net: Net, pub: Pub, count: int) -> Iterator[list[Sub]]:
    """Subscribers to everything, acknowledged."""
    subs = [Sub() for _ in range(count)]
    try:
        net.connect(pub, *subs)
        for sub in subs:
            sub.subscribe(">")
        wait_until(lambda: pub.subscriptions >= count, LONG)
        yield subs
    finally:
        for sub in subs:
            sub.close(0)


@pytest.mark.timeout(120)
def test_of_a_thousand_with_one_stuck_the_others_get_everything_and_its_drops_are_counted(direct: Net) -> None:
    rounds, batch, content = 10, 5, bytes(8192)
    options = {"socket.send_queue_size": 8, "transport.tcp.write_buffer": 16384}
    with Pub(options) as pub, many_subs(direct, pub, 999) as subs, stuck_subscriber(direct, pub) as stuck:
        sent = 0
        for _ in range(rounds):
            for _ in range(batch):
                sent += pub.publish("a", content)
            for sub in subs:
                for _ in range(batch):
                    assert sub.recv(LONG) == ("a", content)
        dropped = stuck.counters.drops["overflow"]
        accepted = rounds * batch - dropped
        assert 0 < accepted < rounds * batch
        assert sent == 999 * rounds * batch + accepted
        assert [pipe.counters.drops for pipe in pub.pipes.values() if pipe is not stuck] == [{}] * 999


@contextmanager
def stuck_subscriber(net: Net, pub: Pub) -> Iterator[Pipe]:
    """A subscriber to everything that takes next to nothing; the publisher's pipe to it."""
    before = set(pub.pipes)
    address = pub.socket.listeners[0].address
    with Socket({"socket.recv_queue_size": 1, "transport.tcp.read_buffer": 4096}) as peer:
        peer.dial(address)
        peer.send_msg(Message(flags=CONTROL | TO_ALL, content=b"\x01>"))
        wait_until(lambda: pub.subscriptions == 1000)
        (pipe_id,) = set(pub.pipes) - before
        yield pub.pipes[pipe_id]


def test_a_stuck_subscriber_gets_in_order_what_was_not_dropped() -> None:
    with Pub({"socket.send_queue_size": 8, "transport.tcp.write_buffer": 65536}) as pub:
        address = pub.listen("tcp://127.0.0.1:0").address
        with plain_connection(address) as peer:
            peer.sendall(encode(Message(flags=CONTROL | TO_ALL, content=b"\x01n")))
            wait_until(lambda: pub.subscriptions == 1)
            pipe = only_pipe(pub)
            accepted = []
            for number in range(300):
                if pub.publish("n", struct.pack(">I", number) + bytes(60_000)):
                    accepted.append(number)
            assert pipe.counters.drops == {"overflow": 300 - len(accepted)}
            decoder, got = Decoder(1, 0), []
            while len(got) < len(accepted):
                for message in decoder.feed(peer.recv(65536)):
                    if message.flags == TO_ALL:
                        got.append(struct.unpack(">I", message.content[3:7])[0])
            assert got == accepted


def test_a_full_receive_queue_stops_no_other_subscriber_of_the_process(direct: Net) -> None:
    with Pub() as pub, Sub({"socket.recv_queue_size": 1}) as lazy, Sub() as busy:
        direct.connect(pub, lazy, busy)
        lazy.subscribe("a", LONG)
        busy.subscribe("a", LONG)
        for number in range(500):
            pub.publish("a", b"%d" % number + bytes(4096))
            assert busy.recv(LONG) == ("a", b"%d" % number + bytes(4096))
        assert lazy.recv(LONG) == ("a", b"0" + bytes(4096))


def test_a_pub_may_be_told_to_wait_instead_of_dropping() -> None:
    with Pub({"socket.send_overflow": "block", "socket.send_queue_size": 1}) as pub:
        with Sub({"socket.recv_queue_size": 1}) as sub:
            sub.dial(pub.listen("inproc://waits").address)
            sub.subscribe("a", LONG)
            published = gevent.spawn(lambda: [pub.publish("a", b"%d" % number) for number in range(100)])
            assert [sub.recv(LONG)[1] for _ in range(100)] == [b"%d" % number for number in range(100)]
            assert published.get(timeout=LONG) == [1] * 100
            with pytest.raises(Timeout):
                for _ in range(3):
                    pub.publish("a", b"", timeout=0.01)


def test_what_goes_to_all_pipes_leaves_them_in_step() -> None:
    with Pub() as pub, ExitStack() as stack:
        address = pub.listen("tcp://127.0.0.1:0").address
        subs = [stack.enter_context(Sub()) for _ in range(10)]
        for sub in subs:
            sub.dial(address)
            sub.subscribe("a", LONG)
        wait_until(lambda: all(isinstance(pipe, BytesPipe) and pipe._fan_out for pipe in pub.pipes.values()))
        for number in range(5):
            assert pub.publish("a", b"%d" % number) == 10
        assert all(isinstance(pipe, BytesPipe) and pipe._fan_out for pipe in pub.pipes.values())
        for sub in subs:
            assert [sub.recv(LONG)[1] for _ in range(5)] == [b"%d" % number for number in range(5)]


def test_a_pipe_without_a_subscriber_gets_nothing_among_many_that_do() -> None:
    with Pub() as pub, ExitStack() as stack:
        address = pub.listen("tcp://127.0.0.1:0").address
        subs = [stack.enter_context(Sub()) for _ in range(10)]
        for sub in subs:
            sub.dial(address)
            sub.subscribe("a", LONG)
        other = stack.enter_context(Socket())
        other.dial(address)
        pub.wait_pipes(11, LONG)
        for number in range(5):
            assert pub.publish("a", b"%d" % number) == 10
        for sub in subs:
            assert [sub.recv(LONG)[1] for _ in range(5)] == [b"%d" % number for number in range(5)]
        wait_until(lambda: sorted(pipe.messages_sent for pipe in pub.pipes.values()) == [1] + [7] * 10)


# The publisher's bookkeeping


def test_new_subscriptions_count_for_topics_that_were_published_before() -> None:
    with Pub() as pub, Sub() as one, Sub() as other:
        address = pub.listen("inproc://before").address
        one.dial(address)
        other.dial(address)
        assert (pub.publish("a", b""), pub.reach("a")) == (0, 0)
        one.subscribe("a", LONG)
        assert (pub.publish("a", b""), pub.reach("a")) == (1, 1)
        other.subscribe(">", LONG)
        assert (pub.publish("a", b""), pub.reach("a")) == (2, 2)
        one.close()
        assert (pub.publish("a", b""), pub.reach("a")) == (1, 1)


def test_more_topics_than_are_remembered_are_published_right() -> None:
    with Pub() as pub, Sub() as sub:
        sub.dial(pub.listen("inproc://topics").address)
        sub.subscribe("even.*", LONG)
        for number in range(3000):
            topic = f"{'odd' if number % 2 else 'even'}.{number}"
            assert pub.publish(topic, b"") == 1 - number % 2
            if not number % 2:
                assert sub.recv(LONG) == (topic, b"")


def test_a_subscriber_that_goes_is_forgotten_at_once(direct: Net) -> None:
    with Pub() as pub, Sub() as sub:
        direct.connect(pub, sub)
        for number in range(10):
            sub.subscribe(f"a.{number}", LONG)
        assert pub.subscriptions == 10
        only_pipe(pub).close()
        assert pub.subscriptions == 0
        assert pub.publish("a.1", b"") == 0


def test_subscriptions_over_the_limit_are_refused_and_counted() -> None:
    limits = {"protocol.pubsub.max_patterns": 3, "protocol.pubsub.max_pattern_length": 10}
    with Pub(limits) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        with pytest.raises(SubscriptionRefused, match="at most 10 bytes, and this one has 11"):
            sub.subscribe("a" * 11, LONG)
        sub.unsubscribe("a" * 11)
        for pattern in ("a" * 10, "b", "c"):
            sub.subscribe(pattern, LONG)
        with pytest.raises(SubscriptionRefused, match="a subscriber has at most 3 patterns"):
            sub.subscribe("d", LONG)
        assert pub.counters.drops == {"refused subscription": 2}
        assert pub.subscriptions == 3
        sub.unsubscribe("d")
        sub.unsubscribe("b")
        sub.subscribe("e", LONG)
        assert (pub.publish("e", b""), pub.publish("d", b"")) == (1, 0)


@pytest.mark.parametrize("own_copies", [False, True])
def test_a_publication_is_as_long_as_other_messages_with_its_topic(own_copies: bool) -> None:
    options = {"socket.max_send_content_length": 100}
    authorize = (lambda remote, pattern: True) if own_copies else None
    with Pub(options, authorize=authorize, authorize_through_switches=own_copies) as pub, Sub() as sub:
        sub.dial(pub.listen(f"inproc://long-{own_copies}").address)
        sub.subscribe("a", LONG)
        for content in (bytes(98), memoryview(bytes(98))):
            with pytest.raises(MessageTooLong):
                pub.publish("a", content)
        assert pub.publish("a", bytes(97)) == 1
        assert sub.recv(LONG) == ("a", bytes(97))


def test_what_is_no_topic_cannot_be_published_nor_subscribed_to() -> None:
    with Pub() as pub, Sub() as sub:
        for topic in ("", "a..b", "a.*", ">"):
            with pytest.raises(BadTopic):
                pub.publish(topic, b"")
        for pattern in ("", "a..b", ">.a", "a*"):
            with pytest.raises(BadTopic):
                sub.subscribe(pattern)
        assert sub.patterns == ()


BAD_PUBLICATIONS = [b"", b"\0", b"\0\0", b"\0\0content", b"\0\5abc", b"\0\1*", b"\0\2a.", b"\0\2\xff\xffcontent"]


def test_a_sub_survives_what_is_no_publication() -> None:
    with Socket() as by_hand, Sub() as sub:
        sub.dial(by_hand.listen("tcp://127.0.0.1:0").address)
        sub.subscribe(">")
        for content in BAD_PUBLICATIONS:
            by_hand.send_all(content)
            by_hand.send_msg(Message(flags=CONTROL | TO_ALL, content=content))
        for content in (b"\x01a", b"\x02a..b", b"\x03a", b"\x02"):
            by_hand.send_msg(Message(flags=CONTROL | TO_ALL, content=content))
        by_hand.send_all(publication("a", b"good"))
        assert sub.recv(LONG) == ("a", b"good")
        assert sub.counters.drops == {"garbage": 2 * len(BAD_PUBLICATIONS) + 4}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=12)), max_size=20))
def test_a_pub_survives_anything_that_is_a_message(messages: list[tuple[int, bytes]]) -> None:
    with Pub() as pub, Socket() as stranger, Sub() as sub:
        address = pub.listen("inproc://anything").address
        stranger.dial(address)
        sub.dial(address)
        sub.subscribe("a.good", LONG)
        for flags, content in messages:
            flags &= ~0x17
            stranger.send_msg(Message(flags=flags | TO_ALL, content=content))
        pub.publish("a.good", b"good")
        assert sub.recv(LONG) == ("a.good", b"good")
        stranger.close(0)
        assert pub.subscriptions == 1


# Acknowledgements


def test_a_pub_that_never_answers_costs_a_bounded_amount_of_memory() -> None:
    with Socket() as by_hand, Sub({"protocol.pubsub.refresh_interval": 0}) as sub:
        sub.dial(by_hand.listen("inproc://mute").address)
        for number in range(3000):
            sub.subscribe(f"a.{number}")
            assert by_hand.recv(LONG)[:1] == b"\x01"
            sub.unsubscribe(f"a.{number}")
            assert by_hand.recv(LONG)[:1] == b"\x00"
        (upstream,) = sub._upstreams.values()
        assert len(upstream.awaited) <= 1024


def test_close_ends_a_subscribe_that_waits() -> None:
    with Socket() as by_hand, Sub() as sub:
        sub.dial(by_hand.listen("inproc://closing").address)
        waiting = gevent.spawn(sub.subscribe, "a", LONG)
        by_hand.recv(LONG)
        sub.close()
        with pytest.raises(Closed):
            waiting.get(timeout=LONG)


def test_iteration_ends_with_close_after_what_had_arrived() -> None:
    with Pub() as pub, Sub() as sub:
        sub.dial(pub.listen("inproc://iteration").address)
        sub.subscribe("a", LONG)
        for number in range(3):
            pub.publish("a", b"%d" % number)
        wait_until(lambda: sub.socket.queued == 3)
        sub.close()
        assert list(sub) == [("a", b"0"), ("a", b"1"), ("a", b"2")]


# Refusals


def test_a_refusal_is_raised_where_it_is_waited_for_and_told_otherwise() -> None:
    with Pub({"protocol.pubsub.max_patterns": 1}) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        told: list[SubscriptionRefused] = []
        end = sub.on_refused(told.append)
        sub.subscribe("kept", LONG)
        with pytest.raises(SubscriptionRefused) as caught:
            sub.subscribe("raised", LONG)
        assert (caught.value.pattern, caught.value.reason) == ("raised", "a subscriber has at most 1 patterns")
        sub.subscribe("told")
        wait_until(lambda: [refusal.pattern for refusal in told] == ["told"])
        end()
        sub.subscribe("not told")
        wait_until(lambda: pub.counters.drops == {"refused subscription": 3})
        sub.unsubscribe("not told")
        sub.unsubscribe("kept")
        # The others are free now.
        sub.subscribe("raised", LONG)
        assert pub.publish("raised", b"") == 1 and len(told) == 1


def test_a_refusal_callback_may_fail_block_and_close() -> None:
    with Pub({"protocol.pubsub.max_pattern_length": 1}) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        told: list[str] = []

        def callback(refusal: SubscriptionRefused) -> None:
            gevent.sleep(0)
            told.append(refusal.pattern)
            if refusal.pattern == "end":
                sub.close()
            raise RuntimeError("the callback of the test fails")

        sub.on_refused(callback)
        for pattern in ("aa", "bb", "end"):
            sub.subscribe(pattern)
        wait_until(lambda: sub.closed)
        assert told == ["aa", "bb", "end"]


@pytest.mark.parametrize("error", [gevent.GreenletExit, gevent.Timeout, RuntimeError])
def test_whatever_a_refusal_callback_raises_the_next_refusal_is_told_and_the_error_shown(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    with Pub({"protocol.pubsub.max_pattern_length": 1}) as pub, Sub() as sub:
        told: list[str] = []

        def callback(refusal: SubscriptionRefused) -> None:
            told.append(refusal.pattern)
            raise error("of the test")

        sub.on_refused(callback)
        for pattern in ("aa", "bb", "cc"):
            sub.subscribe(pattern)
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        wait_until(lambda: told == ["aa", "bb", "cc"])
        records = [record for record in caplog.records if "a refusal callback failed" in record.getMessage()]
        # The others of its kind are not shown for some time.
        assert [record.levelno for record in records if record.levelno >= logging.WARNING] == [
            logging.WARNING if error is gevent.GreenletExit else logging.ERROR
        ]


def test_refusals_for_a_peer_that_does_not_read_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gatekeeper_module, "_MAX_UNSENT", 20_000)
    options = {"protocol.pubsub.max_pattern_length": 10, "socket.send_queue_size": 1}
    with Pub(options) as pub, Socket({"socket.recv_queue_size": 1}) as stuck:
        stuck.dial(pub.listen("inproc://refused").address)
        for number in range(200):
            stuck.send_msg(Message(flags=CONTROL | TO_ALL, content=b"\x01" + b"%01000d" % number))
            assert pub._outbox.waiting_bytes(only_pipe(pub)) < 22_000
        assert pub.counters.drops == {"refused subscription": 200}


# Behind switches


@contextmanager
def switched(pub_side: str = "tcp://127.0.0.1:0", sub_side: str = "tcp://127.0.0.1:0") -> Iterator[tuple[str, str]]:
    """A switch with a listener at either side; their addresses."""
    with Socket() as back, Socket() as front, Switch(back, front):
        yield back.listen(pub_side).address, front.listen(sub_side).address


def test_behind_a_switch_one_may_leave_a_pattern_that_another_one_has() -> None:
    with switched() as (pubs, subs), Pub() as pub, Sub() as one, Sub() as other:
        pub.dial(pubs)
        one.dial(subs)
        other.dial(subs)
        one.subscribe("a", LONG)
        other.subscribe("a", LONG)
        assert pub.subscriptions == 2
        one.unsubscribe("a")
        wait_until(lambda: pub.subscriptions == 1)
        assert pub.publish("a", b"for the other") == 1
        assert other.recv(LONG) == ("a", b"for the other")
        wait_until(lambda: one.counters.drops == {"not subscribed": 1})
        other.unsubscribe("a")
        wait_until(lambda: pub.subscriptions == 0)
        assert pub.publish("a", b"nobody's") == 0


def test_a_switch_behind_which_nobody_subscribed_gets_nothing() -> None:
    with switched() as (here, subs), switched() as (there, _), Pub() as pub, Sub() as sub:
        pub.dial(here)
        pub.dial(there)
        sub.dial(subs)
        sub.subscribe("a", LONG)
        for _ in range(10):
            assert pub.publish("a", b"") == 1
            assert pub.publish("b", b"") == 0
        wait_until(lambda: sorted(pipe.messages_sent for pipe in pub.pipes.values()) == [1, 12])


def test_behind_a_switch_each_subscriber_has_its_own_limit_and_all_together_have_one() -> None:
    options = {"protocol.pubsub.max_patterns": 2, "protocol.pubsub.max_switch_patterns": 5}
    with switched() as (pubs, subs), Pub(options) as pub, ExitStack() as stack:
        pub.dial(pubs)
        many = [stack.enter_context(Sub({"protocol.pubsub.refresh_interval": 0.0})) for _ in range(3)]
        for sub in many:
            sub.dial(subs)
        for number, sub in enumerate(many[:2]):
            for pattern in range(2):
                sub.subscribe(f"a.{number}.{pattern}", LONG)
            with pytest.raises(SubscriptionRefused, match="a subscriber has at most 2 patterns"):
                sub.subscribe("too.many", LONG)
        many[2].subscribe("a", LONG)
        with pytest.raises(SubscriptionRefused, match="a pipe has at most 5 patterns"):
            many[2].subscribe("b", LONG)
        many[0].close()
        wait_until(lambda: pub.subscriptions == 3)
        many[2].subscribe("b", LONG)


def test_a_sub_that_leaves_a_switch_in_order_says_so() -> None:
    with switched() as (pubs, subs), Pub() as pub, Sub() as sub:
        pub.dial(pubs)
        sub.dial(subs)
        for pattern in ("a", "b"):
            sub.subscribe(pattern, LONG)
        assert sub.close() == 0
        wait_until(lambda: pub.subscriptions == 0)
        assert pub.publish("a", b"") == 0


def test_publishers_that_come_behind_a_switch_are_found() -> None:
    with switched() as (pubs, subs), Sub(REFRESHING) as sub:
        sub.dial(subs)
        sub.subscribe("a.*")
        for number in range(3):
            with Pub(QUICK) as pub:
                pub.dial(pubs)
                wait_until(lambda pub=pub: pub.reach("a.b") == 1)  # type: ignore[misc]
                pub.publish("a.b", b"%d" % number)
                assert sub.recv(LONG) == ("a.b", b"%d" % number)


def test_a_publisher_that_comes_behind_a_switch_is_found_without_repeating() -> None:
    options = {**QUICK, "protocol.pubsub.refresh_interval": 0.0}
    with Socket() as back, Socket() as front, Switch(back, front), ExitStack() as stack:
        pubs, subs = back.listen("tcp://127.0.0.1:0").address, front.listen("tcp://127.0.0.1:0").address
        waiting = [stack.enter_context(Sub(options)) for _ in range(20)]
        for sub in waiting:
            sub.subscribe("a.*")
            sub.subscribe("left")
            sub.dial(subs)
        front.wait_pipes(20, LONG)
        waiting[0].unsubscribe("left")
        for number in range(3):
            with Pub(QUICK) as pub:
                pub.dial(pubs)
                wait_until(lambda pub=pub: pub.subscriptions == 39)  # type: ignore[misc]
                pub.publish("a.b", b"%d" % number)
                for sub in waiting:
                    assert sub.recv(LONG) == ("a.b", b"%d" % number)


def test_a_switch_that_is_started_again_connects_them_without_repeating() -> None:
    options = {**QUICK, "protocol.pubsub.refresh_interval": 0.0}
    pubs = subs = "tcp://127.0.0.1:0"
    with Pub(QUICK) as pub, Sub(options) as sub:
        sub.subscribe("a.*")
        for number in range(3):
            with switched(pubs, subs) as (pubs, subs):
                if not number:
                    pub.dial(pubs)
                    sub.dial(subs)
                wait_until(lambda: pub.reach("a.b") == 1, LONG)
                pub.publish("a.b", b"%d" % number)
                assert sub.recv(LONG) == ("a.b", b"%d" % number)
            wait_until(lambda: not pub.pipes and not sub.pipes, LONG)


def test_behind_a_switch_subscribe_waits_for_all_publishers_that_were_heard_of() -> None:
    with switched() as (pubs, subs), Pub() as one, Socket() as other, Sub() as sub:
        sub.dial(subs)
        one.dial(pubs)
        other.dial(pubs)
        waiting = gevent.spawn(sub.subscribe, "a", LONG)
        asked = other.recv_msg(LONG)
        other.send_msg(Message(flags=CONTROL | TO_DEST, destination=asked.source, content=b"\x02a"))
        waiting.get(timeout=LONG)
        wait_until(lambda: all(len(upstream.publishers) == 2 for upstream in sub._upstreams.values()))
        waiting = gevent.spawn(sub.subscribe, "b", LONG)
        asked = other.recv_msg(LONG)
        wait_until(lambda: one.reach("b") == 1)
        gevent.idle()
        assert not waiting.ready()
        other.send_msg(Message(flags=CONTROL | TO_DEST, destination=asked.source, content=b"\x02b"))
        waiting.get(timeout=LONG)
        # One that has gone is waited for once more, and then forgotten.
        other.close(0)
        with pytest.raises(Timeout):
            sub.subscribe("c", 0.1)
        sub.subscribe("d", LONG)


def test_a_sub_that_died_behind_a_switch_is_forgotten_after_a_while_and_a_living_one_is_not() -> None:
    with switched() as (pubs, subs), Pub({"protocol.pubsub.expiry": 0.5}) as pub, Sub(REFRESHING) as sub:
        pub.dial(pubs)
        with Socket() as dying:
            dying.dial(subs)
            for _ in range(3):
                dying.send_msg(Message(flags=CONTROL | TO_ALL, content=b"\x01dead"))
                assert hear(dying).content == b"\x02dead"
            assert pub.reach("dead") == 1
        sub.dial(subs)
        sub.subscribe("alive", LONG)
        wait_until(lambda: pub.reach("dead") == 0)
        assert pub.publish("alive", b"and well") == 1
        assert sub.recv(LONG) == ("alive", b"and well")


@pytest.mark.parametrize("patterns", [("dead",), ("left", "dead")])
def test_a_sub_that_died_behind_a_switch_before_it_repeated_itself_is_forgotten(patterns: tuple[str, ...]) -> None:
    with switched() as (pubs, subs), Pub({"protocol.pubsub.expiry": 0.05}) as pub:
        pub.dial(pubs)
        with Sub() as dying:
            dying.dial(subs)
            for pattern in patterns:
                dying.subscribe(pattern, LONG)
                if pattern != "dead":
                    dying.unsubscribe(pattern)
            # It dies: it does not unsubscribe.
            dying.socket.close()
        wait_until(lambda: pub.reach("dead") == 0)


def subscribe_by_hand(by_hand: Socket, address: str, pattern: bytes) -> None:
    by_hand.dial(address)
    by_hand.send_msg(Message(flags=CONTROL | TO_ALL, content=b"\x01" + pattern))
    assert hear(by_hand).content == b"\x02" + pattern


def is_accepted(sub: Sub, pattern: str) -> bool:
    try:
        sub.subscribe(pattern, LONG)
    except SubscriptionRefused:
        return False
    return True


def test_a_sub_behind_a_switch_that_never_repeats_itself_is_kept_while_there_is_room() -> None:
    options = {"protocol.pubsub.expiry": 0.02, "protocol.pubsub.max_switch_patterns": 2}
    with switched() as (pubs, subs), Pub(options) as pub, Socket() as once, Socket() as second, Sub(REFRESHING) as sub:
        pub.dial(pubs)
        subscribe_by_hand(once, subs, b"once")
        (peer,) = pub._peers.values()
        wait_until(lambda: all(subscriber.silent_checks > 5 for subscriber in peer.subscribers.values()))
        assert pub.publish("once", b"content") == 1
        assert hear(once).content == publication("once", b"content")
        subscribe_by_hand(second, subs, b"second")
        sub.dial(subs)
        wait_until(lambda: is_accepted(sub, "third"))
        assert pub.publish("third", b"") == 1


def test_subs_behind_a_switch_that_never_repeat_themselves_make_room_when_there_is_none_left() -> None:
    options = {"protocol.pubsub.expiry": 0.02, "protocol.pubsub.max_switch_patterns": 2}
    with switched() as (pubs, subs), Pub(options) as pub, Socket() as once, Socket() as second:
        pub.dial(pubs)
        subscribe_by_hand(once, subs, b"once")
        subscribe_by_hand(second, subs, b"second")
        # If the other one has just come, it may stay: there is room again.
        wait_until(lambda: pub.reach("once") == 0)


def test_a_sub_whose_publishers_behind_a_switch_have_all_gone_finds_new_ones_there() -> None:
    with Socket() as back, Socket() as front, Switch(back, front), Sub(REFRESHING) as sub:
        meeting = back.listen("inproc://publishers-come-and-go").address
        sub.dial(front.listen("tcp://127.0.0.1:0").address)
        with Pub(QUICK) as first:
            first.dial(meeting)
            sub.subscribe("a", LONG)
        with pytest.raises(Timeout):
            sub.subscribe("b", 0.1)
        with Pub(QUICK) as second:
            second.dial(meeting)
            wait_until(lambda: second.reach("a") == second.reach("b") == 1, timeout=20)
            second.publish("a", b"news")
            assert sub.recv(LONG) == ("a", b"news")


# A subscriber that leaves


def test_acknowledgements_for_a_subscriber_that_has_gone_are_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    def subscribe_and_leave() -> bool:
        with Socket() as by_hand:
            by_hand.dial(address)
            by_hand.wait_pipes(1, LONG)
            for number in range(200):
                by_hand.send_msg(Message(CONTROL | TO_ALL, content=b"\x01a%d" % number))
        wait_until(lambda: not pub.pipes)
        return bool(pub.counters.drops)

    with Pub() as pub:
        address = pub.listen("tcp://127.0.0.1:0").address
        # Until one has left before it got all of them.
        wait_until(subscribe_and_leave, LONG)
        assert {*pub.counters.drops} == {"disconnect"}
    assert [record.getMessage() for record in caplog.records if "drops messages" in record.getMessage()] == []


@pytest.mark.parametrize("recovers", [False, True])
def test_publications_for_a_subscriber_that_has_gone_are_a_loss(
    recovers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ask = Ask(7, False, True, (), "n").encode()
    options = {"transport.tcp.write_buffer": 65536}
    with Pub(options, history=MemoryHistory("n") if recovers else None) as pub:
        with plain_connection(pub.listen("tcp://127.0.0.1:0").address) as peer:
            for content in [*([ask] if recovers else []), b"\x01n"]:
                peer.sendall(encode(Message(flags=CONTROL | TO_ALL, content=content)))
            wait_until(lambda: pub.subscriptions == 1)
            pipe = only_pipe(pub)
            while pipe.queued < 3:
                pub.publish("n", bytes(60_000))
            pipe.close("for the test")
        assert pipe.counters.drops["disconnect"] >= 2
        wait_until(lambda: "drops messages: disconnect" in caplog.text)


def test_a_peer_that_comes_while_publish_lets_others_run_gets_nothing_it_has_not_subscribed_to() -> None:
    with Pub({"socket.yield_messages": 1}) as pub, Sub() as sub, Socket() as stranger:
        address = pub.listen("tcp://127.0.0.1:0").address
        sub.dial(address)
        sub.subscribe("a", LONG)
        # Nearly all that others do, they do in the middle of a call.
        publishing = gevent.spawn(lambda: [pub.publish("a", b"secret") for _ in range(2000)])
        stranger.dial(address)
        wait_until(lambda: len(pub.pipes) == 2)
        publishing.kill()
        stranger.send_msg(Message(TO_ALL | CONTROL, content=b"\x01end"))
        assert hear(stranger).content == b"\x02end"


def test_a_pub_that_comes_up_behind_a_switch_hears_from_each_sub_once_and_after_a_new_switch_again(
    tmp_path: Path,
) -> None:
    back_address, front_address = (f"ipc://{tmp_path / end}" for end in ("back", "front"))
    count = 20
    with ExitStack() as stack, Pub(QUICK) as pub:
        # They repeat nothing by themselves within this test.
        subs = [stack.enter_context(Sub({**QUICK, "protocol.pubsub.refresh_interval": 1000.0})) for _ in range(count)]
        for number, sub in enumerate(subs):
            sub.subscribe(f"topic.{number}")
            sub.dial(front_address, {"connector.dialer.dial_async": True})
        with switch(back_address, front_address) as front:
            # What they say at first reaches nobody.
            wait_until(lambda: front.counters.messages_received >= 2 * count, LONG)
            pub.dial(back_address)
            wait_until(lambda: pub.subscriptions == count, LONG)
            # Each has subscribed, and said that it repeats that; each was asked once, and has one answer.
            wait_until(lambda: pub.counters.messages_received == 2 * count, LONG)
            wait_until(lambda: front.counters.messages_sent == 2 * count, LONG)
        wait_until(lambda: pub.subscriptions == 0, LONG)
        before = pub.counters.messages_received
        with switch(back_address, front_address) as front:
            wait_until(lambda: pub.subscriptions == count, LONG)
            # A Sub that comes after the Pub is not asked, one that comes before it may subscribe twice.
            end = subs[0]
            end.subscribe("end", LONG)
            assert pub.counters.messages_received - before <= 4 * count + 1
            for number, sub in enumerate(subs):
                assert pub.publish(f"topic.{number}", b"there") == 1
                assert sub.recv(LONG) == (f"topic.{number}", b"there")
