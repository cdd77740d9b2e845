"""Retained values: the present state for subscribers that come later."""

from __future__ import annotations

from contextlib import ExitStack

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import BadTopic, Closed, MessageTooLong, SubscriptionRefused
from gmultisocket.protocol import Pub, RemoteSub, Sub
from gmultisocket.protocol import history as history_module
from gmultisocket.protocol import retained as retained_module
from gmultisocket.protocol.memoryhistory import MemoryHistory
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, TO_DEST, Message
from tests.protocol.net import Net

LONG = 20.0
QUICK = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.02}


def receive(sub: Sub, count: int) -> list[tuple[str, bytes]]:
    return [sub.recv(LONG) for _ in range(count)]


def test_a_newcomer_gets_the_present_values_and_then_what_is_published(net: Net) -> None:
    with Pub() as pub, Sub() as sub, Sub() as other:
        net.connect(pub, sub, other)
        pub.publish("state.a", b"old", retain=True)
        pub.publish("state.a", b"1", retain=True)
        pub.publish("state.a", b"passing")
        pub.publish("state.b", b"2", retain=True)
        pub.publish("elsewhere", b"3", retain=True)
        other.subscribe("end", LONG)
        sub.subscribe("state.*", LONG)
        assert receive(sub, 2) == [("state.a", b"1"), ("state.b", b"2")]
        # A repetition gets nothing, another pattern does.
        sub.subscribe("state.*", LONG)
        sub.subscribe("state.a", LONG)
        pub.publish("state.b", b"4", retain=True)
        assert receive(sub, 2) == [("state.a", b"1"), ("state.b", b"4")]
        for each in (sub, other):
            each.subscribe("end", LONG)
        pub.publish("end", b"")
        # Nobody else behind the switch got it.
        assert other.recv(LONG) == ("end", b"") and sub.recv(LONG) == ("end", b"")
        assert other.counters.drops.get("not subscribed", 0) == (2 if net.switches else 0) - (net.switches > 0)


def test_a_value_that_is_forgotten_does_not_come() -> None:
    with Pub() as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        pub.publish("a", b"1", retain=True)
        assert pub.unretain("a") and not pub.unretain("a")
        sub.subscribe("a", LONG)
        pub.publish("a", b"2")
        assert sub.recv(LONG) == ("a", b"2")
        with pytest.raises(BadTopic):
            pub.unretain("a.*")


def test_after_a_reconnect_the_values_come_again() -> None:
    with Pub() as pub, Sub(QUICK) as sub:
        sub.subscribe("a")
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        pub.publish("a", b"1", retain=True)
        for _ in range(3):
            assert sub.recv(LONG) == ("a", b"1")
            for pipe in [*pub.pipes.values()]:
                pipe.close()


def test_what_cannot_be_sent_is_not_retained() -> None:
    # With its position in front, if a Sub wants that, a publication is 29 bytes longer.
    with Pub({"socket.max_send_content_length": 38}) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        with pytest.raises(MessageTooLong):
            pub.publish("topic", bytes(3), retain=True)
        with pytest.raises(BadTopic):
            pub.publish("a.*", b"", retain=True)
        pub.publish("topic", b"3", retain=True)
        sub.subscribe("topic", LONG)
        assert sub.recv(LONG) == ("topic", b"3")
        pub.close()
        with pytest.raises(Closed):
            pub.publish("topic", b"", retain=True)


def test_more_values_than_may_be_kept_are_counted() -> None:
    with Pub(history=MemoryHistory(max_retained=3)) as pub, Sub() as sub:
        for number in range(5):
            pub.publish(f"a.{number}", b"", retain=True)
        assert pub.counters.drops == {"retained": 2}
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a.*", LONG)
        assert [topic for topic, _ in receive(sub, 3)] == ["a.2", "a.3", "a.4"]


def test_values_that_are_kept_without_being_sent_push_others_out_and_that_is_counted() -> None:
    with Pub(history=MemoryHistory(max_retained=3)) as pub:
        for number in range(5):
            pub._keeper.keep(f"a.{number}", b"")
        assert pub.counters.drops == {"retained": 2}


def test_values_keep_to_the_order_of_what_is_published_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retained_module, "_PORTION", 3)
    monkeypatch.setattr(history_module, "_PORTION", 3)
    with Pub() as pub, Sub({"socket.recv_queue_size": 1}) as sub:
        for topic in range(50):
            pub.publish(f"a.{topic}", b"0", retain=True)
        sub.dial(pub.listen("inproc://meanwhile").address)
        sub.subscribe("a.*")
        last: dict[str, int] = {}
        for number in range(1, 30):
            for topic in range(0, 50, 7):
                pub.publish(f"a.{topic}", b"%d" % number, retain=True)
            topic_name, content = sub.recv(LONG)
            assert int(content) >= last.get(topic_name, 0)
            last[topic_name] = int(content)
        while len(last) < 50:
            topic_name, content = sub.recv(LONG)
            assert int(content) >= last.get(topic_name, 0)
            last[topic_name] = int(content)
        wait_until(lambda: not pub._gate.keeper.retained._queues)


def test_a_peer_that_does_not_read_gets_nothing_more_and_holds_up_nobody() -> None:
    with Pub({"socket.send_queue_size": 1}) as pub, Socket({"socket.recv_queue_size": 1}) as stuck, Sub() as sub:
        address = pub.listen("inproc://stuck").address
        for number in range(1000):
            pub.publish(f"a.{number}", b"", retain=True)
        stuck.dial(address)
        stuck.send_msg(Message(CONTROL | TO_ALL, content=b"\x01a.*"))
        wait_until(lambda: pub.subscriptions == 1)
        sub.dial(address)
        sub.subscribe("a.*", LONG)
        assert len(receive(sub, 1000)) == 1000
        # It leaves in the middle: what was not sent is forgotten.
        (queue,) = pub._gate.keeper.retained._queues.values()
        stuck.send_msg(Message(CONTROL | TO_ALL, content=b"\x00a.*"))
        wait_until(lambda: pub.subscriptions == 1 and not queue)
        contents: list[Message] = []

        def drained() -> bool:
            while stuck.queued:
                contents.append(stuck.recv_msg(LONG))
            return not pub._gate.keeper.retained._queues

        wait_until(drained)
        assert len(contents) < 20
        assert {message.flags for message in contents if not message.flags & CONTROL} <= {TO_DEST}


def test_one_that_unsubscribes_and_subscribes_again_gets_all_values_again() -> None:
    with Pub({"socket.send_queue_size": 1}) as pub, Socket({"socket.recv_queue_size": 1}) as by_hand:
        for number in range(100):
            pub.publish(f"a.{number}", b"%d" % number, retain=True)
        by_hand.dial(pub.listen("inproc://again").address)
        for kind in (b"\x01", b"\x00", b"\x01"):
            by_hand.send_msg(Message(CONTROL | TO_ALL, content=kind + b"a.*"))
            gevent.idle()
        values = [b"%d%d" % (number, number) for number in range(100)]
        found: list[bytes] = []
        while found[-1:] != values[-1:]:
            message = by_hand.recv_msg(LONG)
            if not message.flags & CONTROL:
                found.append(message.content.partition(b"a.")[2])
        assert len(found) > 100 and found[-100:] == values


@pytest.mark.parametrize("recover", [False, True])
def test_a_subscription_that_is_new_in_the_same_turn_brings_the_values_again(net: Net, recover: bool) -> None:
    with Pub() as pub, Sub() as sub:
        net.connect(pub, sub)
        pub.publish("a", b"present", retain=True)
        for _ in range(2):
            sub.subscribe("a", LONG, recover=recover)
            assert sub.recv(LONG) == ("a", b"present")
            # No greenlet runs between this and the next subscribe.
            sub.unsubscribe("a")


def test_values_for_many_come_and_go(direct: Net) -> None:
    with Pub() as pub, ExitStack() as stack:
        subs = [stack.enter_context(Sub()) for _ in range(20)]
        for number in range(300):
            pub.publish(f"a.{number}", b"%d" % number, retain=True)
        direct.connect(pub, *subs)
        for sub in subs:
            sub.subscribe("a.*")
        for number, sub in enumerate(subs):
            if number % 2:
                sub.close()
            else:
                assert receive(sub, 300) == [(f"a.{number}", b"%d" % number) for number in range(300)]
        wait_until(lambda: not pub._gate.keeper.retained._queues)


@pytest.mark.parametrize("through", [False, True])
def test_rights_hold_for_values_too(net: Net, through: bool) -> None:
    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        gevent.sleep(0)
        return pattern in ("public", "end")

    with Pub(authorize=authorize, authorize_through_switches=through) as pub, Sub() as sub:
        net.connect(pub, sub)
        pub.publish("secret", b"1", retain=True)
        pub.publish("public", b"2", retain=True)
        refused = ("secret", ">", "*") if through or not net.switches else ("secret", ">", "*", "public")
        for pattern in refused:
            with pytest.raises(SubscriptionRefused):
                sub.subscribe(pattern, LONG)
        if "public" not in refused:
            sub.subscribe("public", LONG)
            assert sub.recv(LONG) == ("public", b"2")
        assert sub.socket.queued == 0
