"""What a Sub tells the publishers behind one pipe, and which acknowledgements it waits for."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import SubscriptionRefused, Timeout
from gmultisocket.protocol import Pub, Sub
from gmultisocket.protocol import askers as askers_module
from gmultisocket.protocol import upstream as upstream_module
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, TO_DEST, Message, pack_id
from tests.cases import every_case
from tests.protocol.pubsubvectors import publication

LONG = 20.0
UNSUBSCRIBE, SUBSCRIBE, SUBSCRIBED, REPEATS = b"\x00", b"\x01", b"\x02", b"\x08"
ONCE: dict[str, Any] = {"protocol.pubsub.refresh_interval": 0}


@contextmanager
def by_hand_pub(name: str, received: int = 100) -> Iterator[tuple[Socket, Sub]]:
    """A Sub that repeats nothing, and a plain Socket that it takes for its publisher."""
    options = {"socket.send_queue_size": 1, **ONCE}
    with Socket({"socket.recv_queue_size": received}) as by_hand, Sub(options) as sub:
        sub.dial(by_hand.listen(f"inproc://{name}").address)
        yield by_hand, sub
        sub.close(0)


def acknowledge(by_hand: Socket, pattern: bytes, destination: bytes, source: bytes = b"") -> None:
    by_hand.send_msg(Message(CONTROL | TO_DEST, source=source, destination=destination, content=SUBSCRIBED + pattern))


# Telling


def test_a_pattern_is_told_when_it_is_wanted_and_when_it_is_not() -> None:
    with by_hand_pub("told") as (by_hand, sub):
        messages = []
        for change, pattern in ((sub.subscribe, "a.*"), (sub.subscribe, "ü"), (sub.unsubscribe, "a.*")):
            change(pattern)
            messages.append(by_hand.recv_msg(LONG))
        assert [message.content for message in messages] == [
            SUBSCRIBE + b"a.*",
            SUBSCRIBE + "ü".encode(),
            UNSUBSCRIBE + b"a.*",
        ]
        assert {message.flags for message in messages} == {CONTROL | TO_ALL}
        sub.unsubscribe("never wanted")
        gevent.idle()
        assert by_hand.queued == 0


def test_a_sub_that_repeats_itself_says_so_after_its_first_subscription_and_after_it_had_none() -> None:
    with Socket() as by_hand, Socket() as second, Sub() as sub:
        sub.dial(by_hand.listen("inproc://repeats").address)
        told = []
        for change, pattern in (
            (sub.subscribe, "a"), (sub.subscribe, "b"), (sub.unsubscribe, "a"), (sub.unsubscribe, "b"),
            (sub.subscribe, "c"),
        ):  # fmt: skip
            change(pattern)
            told.append(by_hand.recv_msg(LONG))
            if pattern in ("a", "c") and told[-1].content[:1] == SUBSCRIBE:
                told.append(by_hand.recv_msg(LONG))
        assert [message.content for message in told] == [
            SUBSCRIBE + b"a", REPEATS, SUBSCRIBE + b"b", UNSUBSCRIBE + b"a", UNSUBSCRIBE + b"b",
            SUBSCRIBE + b"c", REPEATS,
        ]  # fmt: skip
        assert {message.flags for message in told} == {CONTROL | TO_ALL}
        sub.dial(second.listen("inproc://repeats-too").address)
        assert [second.recv(LONG) for _ in range(2)] == [SUBSCRIBE + b"c", REPEATS]


def test_a_promise_to_repeat_stays_behind_the_subscription_that_it_is_for() -> None:
    options = {"socket.send_queue_size": 1}
    with Socket({"socket.recv_queue_size": 1}) as by_hand, Sub(options) as sub:
        sub.dial(by_hand.listen("inproc://promise").address)
        for number in range(3):
            sub.subscribe(f"fill.{number}")
            gevent.idle()
        for number in range(3):
            sub.unsubscribe(f"fill.{number}")
        sub.subscribe("late")
        told = []
        while not told or told[-1] != REPEATS or SUBSCRIBE + b"late" not in told:
            told.append(by_hand.recv(LONG))
        assert told[-2:] == [SUBSCRIBE + b"late", REPEATS]


def test_a_publisher_that_comes_is_told_every_pattern() -> None:
    with by_hand_pub("first") as (by_hand, sub), Socket() as second:
        for pattern in ("a", "b", "c"):
            sub.subscribe(pattern)
            assert by_hand.recv(LONG) == SUBSCRIBE + pattern.encode()
        sub.unsubscribe("b")
        assert by_hand.recv(LONG) == UNSUBSCRIBE + b"b"
        sub.dial(second.listen("inproc://second").address)
        assert {second.recv(LONG) for _ in range(2)} == {SUBSCRIBE + b"a", SUBSCRIBE + b"c"}
        gevent.idle()
        assert second.queued == 0 and by_hand.queued == 0


def test_while_a_pipe_is_full_only_the_last_words_on_a_pattern_wait_for_it() -> None:
    with by_hand_pub("full", received=1) as (by_hand, sub):
        # These fill the way.
        for number in range(3):
            sub.subscribe(f"fill.{number}")
            gevent.idle()
        for _ in range(10):
            sub.subscribe("kept")
            sub.unsubscribe("kept")
            sub.subscribe("kept")
            sub.subscribe("left")
            sub.unsubscribe("left")
        told = [by_hand.recv(LONG) for _ in range(6)]
        assert told[:3] == [SUBSCRIBE + b"fill.%d" % number for number in range(3)]
        # A publisher must see that the subscription is a new one.
        assert told[3:] == [UNSUBSCRIBE + b"kept", UNSUBSCRIBE + b"left", SUBSCRIBE + b"kept"]
        gevent.idle()
        assert by_hand.queued == 0


# Publishers that ask


def ask(by_hand: Socket, source: bytes) -> None:
    by_hand.send_msg(Message(CONTROL | TO_ALL, source=source, content=b"\x04"))


def test_one_that_asks_behind_a_switch_is_answered_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(askers_module, "_PAUSE", 0.0)
    with by_hand_pub("asking") as (by_hand, sub):
        for pattern in ("a", "b", "c"):
            sub.subscribe(pattern)
            way = by_hand.recv_msg(LONG)
        sub.unsubscribe("b")
        by_hand.recv_msg(LONG)
        for number in (7, 8, 7):
            ask(by_hand, pack_id(number))
            answers = [by_hand.recv_msg(LONG) for _ in range(2)]
            assert [answer.content for answer in answers] == [SUBSCRIBE + b"a", SUBSCRIBE + b"c"]
            assert {(answer.flags, answer.source, answer.destination) for answer in answers} == {
                (CONTROL | TO_DEST, way.source, pack_id(number))
            }
        assert sub.counters.drops == {} and not sub._askers._waiting


def test_one_that_asks_is_told_that_subscriptions_are_repeated() -> None:
    with Socket({"socket.recv_queue_size": 100}) as by_hand, Sub() as sub:
        sub.dial(by_hand.listen("inproc://asks-and-hears").address)
        sub.subscribe("a")
        assert [by_hand.recv(LONG) for _ in range(2)] == [SUBSCRIBE + b"a", b"\x08"]
        ask(by_hand, pack_id(7))
        answers = [by_hand.recv_msg(LONG) for _ in range(2)]
        assert [answer.content for answer in answers] == [SUBSCRIBE + b"a", b"\x08"]
        assert {answer.destination for answer in answers} == {pack_id(7)}


def test_one_that_asks_often_is_answered_once_at_a_time() -> None:
    with by_hand_pub("often") as (by_hand, sub):
        sub.subscribe("a")
        by_hand.recv(LONG)
        for _ in range(50):
            ask(by_hand, pack_id(7))
        assert by_hand.recv(LONG) == SUBSCRIBE + b"a"
        for _ in range(50):
            ask(by_hand, pack_id(7))
        gevent.idle()
        assert by_hand.queued == 0
        assert sum(len(waiting) for waiting in sub._askers._waiting.values()) == 1


def test_the_number_of_those_who_ask_at_once_is_bounded() -> None:
    with by_hand_pub("askers", received=10_000) as (by_hand, sub):
        sub.subscribe("a")
        by_hand.recv(LONG)
        for number in range(1, 1001):
            ask(by_hand, pack_id(number))
        wait_until(lambda: sub.pipes and next(iter(sub.pipes.values())).messages_received == 1000)
        assert sum(len(waiting) for waiting in sub._askers._waiting.values()) <= 256
        assert len(sub._askers._answered) <= 1000


def test_those_who_have_asked_are_remembered_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(askers_module, "monotonic", lambda: clock[0])
    with by_hand_pub("forgotten") as (by_hand, sub):
        sub.subscribe("a")
        by_hand.recv(LONG)
        for now, number, remembered in ((0.0, 1, [1]), (0.5, 2, [1, 2]), (1.2, 3, [2, 3]), (5.0, 4, [4])):
            clock[0] = now
            ask(by_hand, pack_id(number))
            assert by_hand.recv_msg(LONG).destination == pack_id(number)
            wait_until(lambda: not sub._askers._waiting)
            assert [source[-4:] for source in sub._askers._answered] == [pack_id(each) for each in remembered]


def test_the_peer_itself_is_not_answered_when_it_asks() -> None:
    """It gets every subscription anyway."""
    with by_hand_pub("direct") as (by_hand, sub):
        sub.subscribe("a")
        assert by_hand.recv(LONG) == SUBSCRIBE + b"a"
        ask(by_hand, b"")
        sub.subscribe("b")
        assert by_hand.recv(LONG) == SUBSCRIBE + b"b"
        assert not sub._askers._waiting and sub.counters.drops == {}


# Refusals


def refuse(by_hand: Socket, pattern: bytes, destination: bytes, source: bytes = b"", reason: bytes = b"no") -> None:
    content = b"\x03" + struct.pack(">H", len(pattern)) + pattern + reason
    by_hand.send_msg(Message(CONTROL | TO_DEST, source=source, destination=destination, content=content))


def test_a_subscription_that_was_refused_is_asked_for_again_only_when_subscribe_is_called() -> None:
    with by_hand_pub("refusing") as (by_hand, sub):
        for _ in range(3):
            waiting = gevent.spawn(sub.subscribe, "a", LONG)
            asked = by_hand.recv_msg(LONG)
            assert asked.content == SUBSCRIBE + b"a"
            refuse(by_hand, b"a", asked.source, reason=b"nobody may\n")
            with pytest.raises(SubscriptionRefused) as caught:
                waiting.get(timeout=LONG)
            assert caught.value.reason == "nobody may\\n"
        waiting = gevent.spawn(sub.subscribe, "a", LONG)
        acknowledge(by_hand, b"a", by_hand.recv_msg(LONG).source)
        waiting.get(timeout=LONG)
        sub.subscribe("a", 0)
        gevent.idle()
        assert by_hand.queued == 0


def test_a_subscription_that_was_never_answered_is_sent_again_by_the_next_call() -> None:
    with by_hand_pub("mute") as (by_hand, sub):
        for leave in (False, True):
            with pytest.raises(Timeout):
                sub.subscribe("a", 0.01)
            assert by_hand.recv(LONG) == SUBSCRIBE + b"a"
            if leave:
                sub.unsubscribe("a")
                assert by_hand.recv(LONG) == UNSUBSCRIBE + b"a"
            waiting = gevent.spawn(sub.subscribe, "a", LONG)
            asked = by_hand.recv_msg(LONG)
            assert asked.content == SUBSCRIBE + b"a"
            acknowledge(by_hand, b"a", asked.source)
            waiting.get(timeout=LONG)
            sub.unsubscribe("a")
            assert by_hand.recv(LONG) == UNSUBSCRIBE + b"a"


def test_the_refusal_of_an_earlier_subscription_is_not_taken_for_that_of_a_new_one() -> None:
    with by_hand_pub("stale") as (by_hand, sub):
        told: list[SubscriptionRefused] = []
        sub.on_refused(told.append)
        sub.subscribe("a")
        way = by_hand.recv_msg(LONG).source
        sub.unsubscribe("a")
        assert by_hand.recv(LONG) == UNSUBSCRIBE + b"a"
        waiting = gevent.spawn(sub.subscribe, "a", LONG)
        assert by_hand.recv(LONG) == SUBSCRIBE + b"a"
        refuse(by_hand, b"a", way)
        gevent.idle()
        assert not waiting.ready()
        acknowledge(by_hand, b"a", way)
        waiting.get(timeout=LONG)
        assert told == []
        # And now it is revoked.
        refuse(by_hand, b"a", way, reason=b"time is over")
        wait_until(lambda: [refusal.reason for refusal in told] == ["time is over"])


def test_behind_a_switch_one_that_has_refused_is_not_asked_again_and_the_others_are() -> None:
    with Socket({"socket.recv_queue_size": 100}) as by_hand:
        with Sub({"protocol.pubsub.refresh_interval": 0.02}) as sub:
            sub.dial(by_hand.listen("inproc://some-refuse").address)
            sub.subscribe("a")
            way = by_hand.recv_msg(LONG).source
            acknowledge(by_hand, b"a", way, pack_id(7))
            refuse(by_hand, b"a", way, pack_id(8))
            (upstream,) = sub._upstreams.values()
            wait_until(lambda: upstream.refusal("a") == "no")
            while by_hand.queued:
                by_hand.recv_msg(LONG)
            for _ in range(3):
                again = by_hand.recv_msg(LONG)
                assert (again.flags, again.destination) == (CONTROL | TO_DEST, pack_id(7))
                acknowledge(by_hand, b"a", way, pack_id(7))
            # It may be asked, when it asks.
            ask(by_hand, pack_id(9))
            while (again := by_hand.recv_msg(LONG)).destination != pack_id(9):
                assert again.destination == pack_id(7)
            sub.close(0)


def test_refusals_that_a_peer_makes_up_cost_a_bounded_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "_MAX_REFUSALS", 100)
    with by_hand_pub("made-up-refusals") as (by_hand, sub):
        told: list[SubscriptionRefused] = []
        sub.on_refused(told.append)
        for pattern in ("a", "b"):
            sub.subscribe(pattern)
            way = by_hand.recv_msg(LONG).source
        (upstream,) = sub._upstreams.values()
        for number in range(1, 200):
            for pattern in (b"a", b"b", b"never subscribed to"):
                refuse(by_hand, pattern, way, pack_id(number))
        wait_until(lambda: upstream.pipe.messages_received == 3 * 199)
        assert upstream._refusals == sum(map(len, upstream.refusals.values())) <= 200
        assert set(upstream.refusals) <= {"a", "b"}
        sub.unsubscribe("a")
        sub.unsubscribe("b")
        assert upstream._refusals == 0 == len(upstream.refusals)


# Acknowledgements


def test_subscribe_waits_for_nobody_where_nobody_is() -> None:
    with Sub() as sub, Pub() as pub:
        sub.subscribe("a", 0)
        sub.dial(pub.listen("inproc://later").address)
        wait_until(lambda: pub.subscriptions == 1)
        assert pub.publish("a", b"later") == 1


def test_a_subscription_that_nobody_acknowledged_in_time_stays() -> None:
    with Socket() as by_hand, Sub() as sub:
        sub.dial(by_hand.listen("inproc://silent").address)
        with pytest.raises(Timeout) as caught:
            sub.subscribe("a", 0.01)
        assert caught.value.seconds == 0.01
        with pytest.raises(Timeout):
            sub.subscribe("a", 0)
        by_hand.send_all(publication("a", b"all the same"))
        assert sub.recv(LONG) == ("a", b"all the same")


def test_the_acknowledgement_of_an_earlier_subscription_is_not_taken_for_that_of_a_new_one() -> None:
    with Socket() as by_hand, Sub(ONCE) as sub:
        sub.dial(by_hand.listen("inproc://order").address)
        sub.subscribe("a")
        first = by_hand.recv_msg(LONG)
        sub.unsubscribe("a")
        assert by_hand.recv_msg(LONG).content == b"\x00a"
        waiting = gevent.spawn(sub.subscribe, "a", LONG)
        assert by_hand.recv_msg(LONG).content == b"\x01a"
        acknowledgement = Message(flags=CONTROL | TO_DEST, destination=first.source, content=b"\x02a")
        by_hand.send_msg(acknowledgement)
        gevent.idle()
        assert not waiting.ready()
        by_hand.send_msg(acknowledgement)
        waiting.get(timeout=LONG)


def test_subscribing_and_leaving_at_once_ends_as_it_was_left() -> None:
    with Pub() as pub, Sub() as sub:
        sub.dial(pub.listen("inproc://fickle").address)
        for _ in range(3):
            sub.subscribe("a")
            sub.unsubscribe("a")
        sub.subscribe("b", LONG)
        wait_until(lambda: pub.subscriptions == 1)
        for _ in range(3):
            sub.unsubscribe("b")
            sub.subscribe("b")
        sub.subscribe("b", LONG)
        assert pub.publish("b", b"") == 1


def test_subscribe_waits_for_the_slowest_of_the_publishers() -> None:
    with Socket() as by_hand, Pub() as pub, Sub() as sub:
        sub.dial(by_hand.listen("inproc://slow").address)
        sub.dial(pub.listen("inproc://fast").address)
        waiting = gevent.spawn(sub.subscribe, "a", LONG)
        asked = by_hand.recv_msg(LONG)
        wait_until(lambda: pub.subscriptions == 1)
        gevent.idle()
        assert not waiting.ready()
        by_hand.close_pipe(asked.pipe_id)
        waiting.get(timeout=LONG)


def test_acknowledgements_that_nobody_waits_for_change_nothing() -> None:
    with by_hand_pub("liar") as (by_hand, sub), every_case() as case:
        sub.subscribe("mine")
        way = by_hand.recv_msg(LONG).source
        acknowledge(by_hand, b"mine", way)
        for number, pattern in enumerate((b"never", b"mine", b"mine", b"other", b"new.0", b"new.4")):
            with case(pattern):
                acknowledge(by_hand, pattern, way)
                waiting = gevent.spawn(sub.subscribe, f"new.{number}", LONG)
                asked = by_hand.recv_msg(LONG)
                gevent.idle()
                assert not waiting.ready()
                acknowledge(by_hand, asked.content[1:], way)
                waiting.get(timeout=LONG)


def test_an_acknowledgement_frees_those_who_wait_for_its_pattern_and_no_others() -> None:
    with by_hand_pub("two") as (by_hand, sub):
        one = [gevent.spawn(sub.subscribe, "one", LONG) for _ in range(2)]
        other = gevent.spawn(sub.subscribe, "other", LONG)
        asked = [by_hand.recv_msg(LONG) for _ in range(2)]
        assert [message.content for message in asked] == [SUBSCRIBE + b"one", SUBSCRIBE + b"other"]
        way = asked[0].source
        acknowledge(by_hand, b"one", way)
        for waiting in one:
            waiting.get(timeout=LONG)
        assert not other.ready()
        acknowledge(by_hand, b"other", way)
        other.get(timeout=LONG)


def test_one_behind_a_switch_acknowledges_in_its_place_what_else_was_asked_for() -> None:
    with by_hand_pub("switch") as (by_hand, sub):
        one, other = (gevent.spawn(sub.subscribe, pattern, LONG) for pattern in ("one", "other"))
        way = [by_hand.recv_msg(LONG) for _ in range(2)][0].source
        acknowledge(by_hand, b"one", way, source=pack_id(7))
        one.get(timeout=LONG)
        gevent.idle()
        assert not other.ready()
        acknowledge(by_hand, b"other", way, source=pack_id(7))
        other.get(timeout=LONG)


def test_a_pipe_that_closes_frees_those_who_wait_for_its_publisher() -> None:
    with by_hand_pub("gone") as (by_hand, sub):
        waiting = gevent.spawn(sub.subscribe, "a", LONG)
        by_hand.recv(LONG)
        by_hand.close(0)
        waiting.get(timeout=LONG)


def test_of_the_publishers_behind_one_pipe_a_bounded_number_is_waited_for() -> None:
    """A peer may make up as many sources as it likes."""
    with by_hand_pub("crowd") as (by_hand, sub):
        sub.subscribe("a")
        way = by_hand.recv_msg(LONG).source
        for number in range(1, 3000):
            acknowledge(by_hand, b"a", way, pack_id(number))
        waiting = gevent.spawn(sub.subscribe, "b", LONG)
        assert by_hand.recv(LONG) == SUBSCRIBE + b"b"
        for number in range(1, 1024):
            acknowledge(by_hand, b"b", way, pack_id(number))
        gevent.idle()
        assert not waiting.ready()
        acknowledge(by_hand, b"b", way, pack_id(1024))
        waiting.get(timeout=LONG)


def test_after_all_silent_publishers_were_given_up_the_next_subscribe_waits_again() -> None:
    with by_hand_pub("given-up") as (by_hand, sub):
        sub.subscribe("a")
        path = by_hand.recv_msg(LONG).source
        # It is a switch with a publisher behind it, which goes.
        acknowledge(by_hand, b"a", path, source=pack_id(77))
        wait_until(lambda: not any(upstream.awaited for upstream in sub._upstreams.values()))
        for _ in range(2):
            with pytest.raises(Timeout):
                sub.subscribe("b", 0.02)
            assert by_hand.recv(LONG) == SUBSCRIBE + b"b"
        waiting = gevent.spawn(sub.subscribe, "b", LONG)
        assert by_hand.recv(LONG) == SUBSCRIBE + b"b"
        assert not waiting.ready()
        acknowledge(by_hand, b"b", path, source=pack_id(78))
        waiting.get(timeout=LONG)
