"""History: subscribers that come back get what they have missed, and are told what does not come."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import Closed, MessageTooLong, SubscriptionRefused, Timeout
from gmultisocket.protocol import Entry, Gap, MemoryHistory, Pub, RemoteSub, Sub
from gmultisocket.protocol import history as history_module
from gmultisocket.protocol import replaying as replaying_module
from gmultisocket.protocol.history import everything_since
from gmultisocket.protocol.pubsubwire import Ask, Position, Positioned, Replay, read_ask
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, TO_DEST, Message
from tests.addresses import TRANSPORTS
from tests.protocol.net import Net
from tests.protocol.pubsubhand import LONG, answers, ask, hand
from tests.protocol.pubsubvectors import publication

QUICK: dict[str, Any] = {
    "connector.dialer.min_reconnect_time": 0.001,
    "connector.dialer.max_reconnect_time": 0.02,
}


def receive(sub: Sub, count: int) -> list[tuple[str, bytes]]:
    return [sub.recv(LONG) for _ in range(count)]


def cut(pub: Pub) -> None:
    for pipe in [*pub.pipes.values()]:
        pipe.close()
    wait_until(lambda: not pub.pipes)


# What comes


def test_what_was_published_meanwhile_comes_after_a_reconnect() -> None:
    gaps: list[Gap] = []
    with Pub(history=MemoryHistory("a.>")) as pub, Sub(QUICK) as sub:
        sub.on_gap(gaps.append)
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a.>", LONG, recover=True)
        pub.publish("a.x", b"1")
        assert sub.recv(LONG) == ("a.x", b"1")
        cut(pub)
        for number in range(2, 200):
            pub.publish("a.y" if number % 2 else "a.x", b"%d" % number)
            pub.publish("elsewhere", b"")
        assert [int(content) for _, content in receive(sub, 198)] == [*range(2, 200)]
        pub.publish("a.x", b"200")
        assert sub.recv(LONG) == ("a.x", b"200")
        assert gaps == [] and sub.counters.drops == {}


def test_what_the_history_has_forgotten_is_a_gap_at_its_place() -> None:
    heard: list[object] = []
    with Pub(history=MemoryHistory("a.>", max_entries=3)) as pub, Sub(QUICK) as sub:
        sub.on_gap(heard.append)
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a.>", LONG, recover=True)
        pub.publish("a.x", b"0")
        heard.append(sub.recv(LONG))
        cut(pub)
        for number in range(1, 7):
            pub.publish("a.x", b"%d" % number)
        for _ in range(3):
            heard.append(sub.recv(LONG))
        assert heard == [
            ("a.x", b"0"), Gap("a.>", None, "history"), ("a.x", b"4"), ("a.x", b"5"), ("a.x", b"6"),
        ]  # fmt: skip


def test_a_program_that_iterates_finds_a_gap_at_its_place() -> None:
    heard: list[object] = []
    with Pub(history=MemoryHistory("a", max_entries=1)) as pub, Sub(QUICK) as sub:
        sub.on_gap(heard.append)
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a", LONG, recover=True)
        pub.publish("a", b"first")
        for _, content in sub:
            heard.append(content)
            if content == b"end":
                break
            cut(pub)
            for content in (b"lost", b"end"):
                pub.publish("a", content)
        assert heard == [b"first", Gap("a", None, "history"), b"end"]


def test_what_is_lost_on_the_way_is_a_gap_before_the_next_publication_of_its_topic() -> None:
    gaps: list[Gap] = []
    with (
        Pub({"socket.send_queue_size": 1}, history=MemoryHistory(">")) as pub,
        Sub({"socket.recv_queue_size": 1}) as sub,
    ):
        sub.on_gap(gaps.append)
        sub.dial(pub.listen("inproc://overflow").address)
        sub.subscribe(">", LONG, recover=True)
        for number in range(10):
            pub.publish("a", b"%d" % number)
        got: list[int] = []
        while sub.socket.queued:
            got.append(int(sub.recv(LONG)[1]))
            gevent.idle()
        assert got == [*range(len(got))] and len(got) < 10
        pub.publish("b", b"")
        assert sub.recv(LONG) == ("b", b"") and gaps == []
        pub.publish("a", b"10")
        assert sub.recv(LONG) == ("a", b"10") and gaps == [Gap(">", "a", "overflow")]


def test_a_publisher_that_was_started_again_is_a_gap(net: Net) -> None:
    gaps: list[Gap] = []
    options = {**QUICK, "protocol.pubsub.recover_timeout": 0}
    with Sub(options) as sub:
        sub.on_gap(gaps.append)
        address = net.address() if net.transport in ("inproc", "ipc") else None
        with Pub(history=MemoryHistory("a")) as pub:
            address = str(pub.listen(address or net.address()).address)
            sub.dial(address)
            sub.subscribe("a", LONG, recover=True)
            pub.publish("a", b"1")
            assert sub.recv(LONG) == ("a", b"1")
        with Pub(history=MemoryHistory("a")) as pub:
            pub.listen(address)
            pub.wait_subscribers("a", timeout=LONG)
            sub.subscribe("other", LONG)
            pub.publish("a", b"2")
            assert sub.recv(LONG) == ("a", b"2") and gaps == [Gap("a", None, "gone")]


def test_a_history_that_nobody_has_after_a_reconnect_is_one_gap() -> None:
    gaps: list[Gap] = []
    with Sub({**QUICK, "protocol.pubsub.recover_timeout": 0.05}) as sub, Pub() as other:
        sub.on_gap(gaps.append)
        sub.subscribe("a", recover=True)
        with Pub(history=MemoryHistory("a")) as pub:
            sub.dial(pub.listen("inproc://gone").address)
            sub.subscribe("a", LONG)
            pub.publish("a", b"1")
            assert sub.recv(LONG) == ("a", b"1")
        reader = gevent.spawn(sub.recv, LONG)
        sub.dial(other.listen("inproc://other").address)
        wait_until(lambda: gaps == [Gap("a", None, "gone")])
        other.publish("a", b"2")
        assert reader.get(timeout=LONG) == ("a", b"2")


def test_another_publisher_with_the_same_history_goes_on() -> None:
    gaps: list[Gap] = []
    history = MemoryHistory("a")
    with Pub(history=history) as one, Pub(history=history) as other, Sub(QUICK) as sub:
        sub.on_gap(gaps.append)
        dialer = sub.dial(one.listen("inproc://one").address)
        sub.subscribe("a", LONG, recover=True)
        one.publish("a", b"1")
        assert sub.recv(LONG) == ("a", b"1")
        dialer.close()
        cut(one)
        one.publish("a", b"2")
        sub.dial(other.listen("inproc://other").address)
        assert sub.recv(LONG) == ("a", b"2")
        one.publish("a", b"3")
        entry = everything_since(history, "a", 2).entries[0]
        assert other.publish_entry(entry) == 1
        assert sub.recv(LONG) == ("a", b"3") and gaps == []


def test_without_recover_a_newcomer_gets_the_values_and_after_a_reconnect_a_gap(net: Net) -> None:
    gaps: list[Gap] = []
    with Pub(history=MemoryHistory("a.*")) as pub, Sub(QUICK) as sub, Sub(QUICK) as bare:
        net.connect(pub, sub, bare)
        pub.publish("a.x", b"1", retain=True)
        pub.publish("a.x", b"2")
        sub.on_gap(gaps.append)
        sub.subscribe("a.*", LONG)
        bare.subscribe("a.*", LONG, retained=False)
        pub.publish("a.x", b"3")
        assert receive(sub, 2) == [("a.x", b"1"), ("a.x", b"3")]
        assert bare.recv(LONG) == ("a.x", b"3")
        cut(pub)
        for number in (4, 5, 6):
            pub.publish("a.x", b"%d" % number, retain=number == 5)
        pub.wait_subscribers("a.x", 2, LONG)
        assert sub.recv(LONG) == ("a.x", b"5")
        # Behind a switch it sees only by the next publication of the topic that the Pub was away.
        assert gaps == [Gap("a.*", "a.x", "overflow") if net.switches else Gap("a.*", None, "history")]
        pub.publish("a.x", b"7")
        assert sub.recv(LONG) == bare.recv(LONG) == ("a.x", b"7")


def test_a_pub_that_keeps_nothing_serves_a_sub_that_recovers(net: Net) -> None:
    gaps: list[Gap] = []
    with Pub() as pub, Sub() as sub:
        net.connect(pub, sub)
        sub.on_gap(gaps.append)
        sub.subscribe("a", LONG, recover=True)
        for number in range(3):
            pub.publish("a", b"%d" % number)
        # From now on it keeps one, with a position.
        pub.publish("a", b"3", retain=True)
        pub.publish("a", b"4")
        assert [content for _, content in receive(sub, 5)] == [b"0", b"1", b"2", b"3", b"4"]
        assert gaps == []


def test_patterns_that_were_there_before_the_first_that_recovers_get_positions_too() -> None:
    with Pub(history=MemoryHistory("a.>")) as pub, Sub(QUICK) as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a.x", LONG)
        pub.publish("a.x", b"0")
        sub.subscribe("a.y", LONG, recover=True)
        sub.subscribe("a.x", LONG, recover=True)
        wait_until(lambda: not any(upstream.awaited for upstream in sub._upstreams.values()))
        cut(pub)
        pub.publish("a.x", b"1")
        pub.publish("a.y", b"2")
        assert receive(sub, 3) == [("a.x", b"0"), ("a.x", b"1"), ("a.y", b"2")]


def test_a_pattern_that_was_there_before_has_its_values_once_and_again_after_a_reconnect() -> None:
    with Pub() as pub, Sub(QUICK) as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        pub.publish("a", b"1", retain=True)
        sub.subscribe("a", LONG)
        assert sub.recv(LONG) == ("a", b"1")
        sub.on_gap(lambda gap: None)
        sub.subscribe("b", LONG)
        wait_until(lambda: not any(upstream.awaited for upstream in sub._upstreams.values()))
        assert sub.socket.queued == 0
        cut(pub)
        pub.publish("a", b"2", retain=True)
        assert sub.recv(LONG) == ("a", b"2")


def test_values_of_patterns_that_were_there_before_come_once_however_many_there_are() -> None:
    topics = [f"a.{number}" for number in range(600)]
    with Pub(history=MemoryHistory("a.>")) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        for topic in topics:
            sub.subscribe(topic)
        for topic in topics:
            sub.subscribe(topic, LONG)
        wait_until(lambda: pub.subscriptions == len(topics))
        for topic in topics:
            pub.publish(topic, b"value", retain=True)
            pub.publish(topic, b"newer")
        receive(sub, 2 * len(topics))
        sub.on_gap(lambda gap: pytest.fail("nothing is missing"))
        sub.subscribe("end", LONG)
        replays = pub._keeper.replays
        wait_until(lambda: replays is not None and not replays.queues and len(replays._live) == len(topics) + 1)
        pub.publish("end", b"")
        # Not the old values, behind newer publications.
        assert sub.recv(LONG) == ("end", b"")


def test_values_of_a_pattern_come_although_another_one_makes_it_count_positions_at_once() -> None:
    with Pub() as pub, Sub() as sub:
        pub.publish("a", b"1", retain=True)
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        wait_until(lambda: bool(sub.pipes))
        sub.subscribe("a")
        sub.subscribe("b", recover=True)
        assert sub.recv(LONG) == ("a", b"1")


@pytest.mark.parametrize("recover", [False, True])
def test_each_new_subscription_gets_the_present_value_again(net: Net, recover: bool) -> None:
    with Pub(history=MemoryHistory("a")) as pub, Sub() as sub:
        sub.on_gap(lambda gap: None)
        net.connect(pub, sub)
        pub.publish("a", b"with history", retain=True)
        pub.publish("b", b"without", retain=True)
        for pattern, topics in [("a", "a"), (">", "ab"), ("b", "b"), ("b", "b"), (">", "ab")]:
            sub.subscribe(pattern, LONG, recover=recover)
            assert sorted(topic for topic, _ in receive(sub, len(topics))) == [*topics]
            sub.unsubscribe(pattern)
        assert "repeated" not in sub.counters.drops


def test_what_has_no_position_comes_while_a_publisher_is_asked_again_because_another_one_has_gone() -> None:
    history = MemoryHistory("a")
    with Pub(history=history) as pub, Socket() as worker, Sub() as sub:
        sub.on_gap(lambda gap: None)
        sub.dial(worker.listen("inproc://worker").address)
        sub.subscribe(">", recover=True)
        # By hand: the replay of another publisher with the same history, which does not end.
        question = worker.recv_msg(LONG)
        answer = Replay(read_ask(question.content).id, history.epoch, 0, first_meeting=True).encode()
        worker.send_msg(Message(CONTROL | TO_DEST, destination=question.source, content=answer))
        sub.dial(pub.listen("inproc://other").address)
        sub.subscribe(">", LONG)
        recovery = sub._recovery
        assert recovery is not None
        (meeting,) = recovery._positions._meetings[history.epoch].values()
        wait_until(lambda: [*meeting.sources.values()].count(0) == 1)
        for pipe in [*worker.pipes.values()]:
            pipe.close()
        wait_until(lambda: len(sub.pipes) == 1 and not meeting.sources)
        pub.publish("plain", b"1")
        assert sub.recv(LONG) == ("plain", b"1")
        assert "repeated" not in sub.counters.drops


def test_what_several_patterns_match_comes_once_after_a_reconnect() -> None:
    with Pub(history=MemoryHistory(">")) as pub, Sub(QUICK) as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        for pattern in (">", "a.*", "a.x"):
            sub.subscribe(pattern, LONG, recover=True)
        for number in range(10):
            pub.publish("a.x", b"%d" % number)
        assert [int(content) for _, content in receive(sub, 10)] == [*range(10)]
        cut(pub)
        for number in range(10, 20):
            pub.publish("a.x", b"%d" % number)
        assert [int(content) for _, content in receive(sub, 10)] == [*range(10, 20)]
        sub.subscribe("end", LONG)
        pub.publish("end", b"")
        assert sub.recv(LONG) == ("end", b"")


def test_old_subscribers_and_new_ones_behind_one_switch_both_get_their_form(net: Net) -> None:
    with Pub(history=MemoryHistory("a")) as pub, Sub() as sub, Socket() as old, Sub() as plain:
        net.connect(pub, sub, old, plain)
        old.send_msg(Message(CONTROL | TO_ALL, content=b"\x01a"))
        plain.subscribe("a", LONG)
        sub.subscribe("a", LONG, recover=True)
        pub.wait_subscribers("a", 3, LONG)
        for number in range(10):
            pub.publish("a", b"%d" % number)
        assert [int(content) for _, content in receive(sub, 10)] == [*range(10)]
        assert [int(content) for _, content in receive(plain, 10)] == [*range(10)]
        got: list[bytes] = []
        while len(got) < 10:
            message = old.recv_msg(LONG)
            if not message.flags & CONTROL:
                got.append(message.content[3:])
        assert [int(content) for content in got] == [*range(10)]
        gevent.idle()
        assert sub.socket.queued == plain.socket.queued == 0


def test_one_that_comes_later_behind_a_switch_and_counts_no_positions_misses_nothing(net: Net) -> None:
    with Pub(history=MemoryHistory("a")) as pub, Sub() as sub, Sub() as plain:
        net.connect(pub, sub, plain)
        sub.subscribe("a", LONG, recover=True)
        for number in range(2):
            pub.publish("a", b"%d" % number)
        assert receive(sub, 2) == [("a", b"0"), ("a", b"1")]
        plain.subscribe("a", LONG)
        pub.publish("a", b"2")
        assert sub.recv(LONG) == plain.recv(LONG) == ("a", b"2")
        plain.unsubscribe("a")
        wait_until(lambda: pub.subscriptions == 1)
        pub.publish("a", b"3")
        assert sub.recv(LONG) == ("a", b"3")
        replays = pub._keeper.replays
        assert replays is not None and not replays.splits["a"].alone


@pytest.mark.parametrize("recover", [False, True])
@pytest.mark.parametrize("transport", ["inproc", "tcp", "ws"])
def test_an_answer_is_not_dropped_to_make_room_for_publications(transport: str, recover: bool, tmp_path: Path) -> None:
    options = {"socket.send_overflow": "drop_oldest", "socket.send_queue_size": 4}
    with Pub(options, history=MemoryHistory("a", "b")) as pub, Sub({"socket.recv_queue_size": 1}) as sub:
        sub.dial(pub.listen(TRANSPORTS[transport](tmp_path)).address)
        sub.subscribe("a", LONG, recover=recover)
        (pipe,) = pub.pipes.values()
        content = bytes(1 << 16)
        while not pipe.counters.drops:
            pub.publish("a", content)
            gevent.sleep(0)
        sub.subscribe("b", recover=recover)
        wait_until(lambda: pub.subscriptions == 2)
        # There is room for its answer whenever something has left; then more comes than the queue can have.
        (upstream,) = sub._upstreams.values()
        with gevent.Timeout(LONG):
            while upstream.awaits("b"):
                sub.recv()
                gevent.sleep(0.001)
                for _ in range(8):
                    pub.publish("a", content)
            pub.publish("b", b"live")
            while sub.recv()[0] != "b":
                pass


# The program's callbacks


def test_an_error_of_a_gap_callback_is_logged_and_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    gaps: list[Gap] = []

    def fails(gap: Gap) -> None:
        raise RuntimeError("no use")

    with Pub(history=MemoryHistory("a", max_entries=1)) as pub, Sub(QUICK) as sub:
        sub.on_gap(fails)
        sub.on_gap(gaps.append)
        ended = sub.on_gap(lambda gap: pytest.fail("it was ended"))
        ended()
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a", LONG, recover=True)
        cut(pub)
        pub.publish("a", b"1")
        pub.publish("a", b"2")
        assert sub.recv(LONG) == ("a", b"2")
        assert gaps == [Gap("a", None, "history")]
        assert "a gap callback failed" in caplog.text


def test_a_gap_does_not_end_the_wait_for_a_publication() -> None:
    gaps: list[Gap] = []
    with Pub(history=MemoryHistory("a", max_entries=1)) as pub, Sub(QUICK) as sub:
        sub.on_gap(gaps.append)
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a", LONG, recover=True)
        cut(pub)
        pub.publish("a", b"1")
        pub.publish("a", b"2")
        pub.unretain("a")
        assert sub.recv(LONG) == ("a", b"2")
        with pytest.raises(Timeout):
            sub.recv(0.01)
        assert len(gaps) == 1
        sub.close()
        with pytest.raises(Closed):
            sub.on_gap(gaps.append)


# Rights


def test_rights_hold_in_a_replay_and_end_it() -> None:
    asked: list[str] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        asked.append(pattern)
        gevent.sleep(0)
        return pattern == "mine"

    history = MemoryHistory(">")
    with Pub({"socket.send_queue_size": 1}, authorize=authorize, history=history) as pub:
        for number in range(100):
            pub.publish("mine", b"%d" % number)
            pub.publish("secret", b"", retain=True)
        with hand("rights", pub, **{"socket.recv_queue_size": 1}) as by_hand:
            position = (Position(history.epoch, 0),)
            ask(by_hand, *(Ask(number, True, True, position, pattern) for number, pattern in ((1, ">"), (2, "mine"))))
            got = answers(by_hand, 4)
            assert bytes(got[0])[:1] == b"\x03" if isinstance(got[0], bytes) else False
            assert got[1] == Replay(2, history.epoch, 200, recovered=True)
            assert asked == [">", "mine"]
            (subscriber,) = (RemoteSub(pipe, pipe.path) for pipe in pub.pipes.values())
            assert pub.revoke(subscriber, "mine", "no more")
            pub.publish("mine", b"after")
            rest: list[Replay | Positioned | bytes] = []
            while not rest or not isinstance(rest[-1], bytes):
                rest += answers(by_hand, 1)
            # What was on its way came, and then the reason.
            assert rest[-1] == b"\x03\x00\x04mineno more" and len(rest) < 10
            gevent.idle()
            assert by_hand.queued == 0


def test_behind_a_switch_a_pub_with_rights_replays_to_the_one_that_may(net: Net) -> None:
    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        return pattern != "secret"

    with (
        Pub(authorize=authorize, authorize_through_switches=True, history=MemoryHistory(">")) as pub,
        Sub(QUICK) as sub,
        Sub(QUICK) as other,
    ):
        net.connect(pub, sub, other)
        other.subscribe("public", LONG)
        with pytest.raises(SubscriptionRefused):
            other.subscribe("secret", LONG, recover=True)
        sub.subscribe("secret.*", LONG, recover=True)
        cut(pub)
        for number in range(5):
            pub.publish("secret.a", b"%d" % number)
        assert [int(content) for _, content in receive(sub, 5)] == [*range(5)]
        pub.publish("secret.a", b"5")
        assert sub.recv(LONG) == ("secret.a", b"5")
        pub.wait_subscribers("public", timeout=LONG)
        pub.publish("public", b"")
        assert other.recv(LONG) == ("public", b"")
        assert other.counters.drops.get("not subscribed", 0) == other.counters.drops.get("garbage", 0) == 0


# The other side by hand


def test_a_pub_answers_a_0x05_and_its_0x01_once() -> None:
    history = MemoryHistory("a")
    with Pub(history=history) as pub, hand("once", pub) as by_hand:
        pub.publish("a", b"1")
        epoch = history.epoch
        ask(by_hand, Ask(7, True, True, (), "a"))
        assert answers(by_hand, 1) == [Replay(7, epoch, 1, first_meeting=True, end=True)]
        pub.publish("a", b"2")
        assert answers(by_hand, 1) == [Positioned(0, epoch, 2, 1, publication("a", b"2"))]
        # The same again is a repetition; so is a 0x01 alone.
        ask(by_hand, Ask(7, True, True, (), "a"))
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=b"\x01a"))
        assert answers(by_hand, 1) == [b"\x02a"]
        # A new question gets a new answer.
        ask(by_hand, Ask(8, True, True, (Position(epoch, 1),), "a"))
        assert [each for each in answers(by_hand, 3) if each != b"\x02a"] == [
            Replay(8, epoch, 2, recovered=True), Positioned(8, epoch, 2, 1, publication("a", b"2")),
            Replay(8, epoch, 2, end=True),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("position", "flags"), [(None, {"first_meeting": True}), (0, {"recovered": True}), (5, {"gap": True})]
)
def test_a_position_from_the_future_is_a_gap_and_one_of_an_unknown_history_is_none(
    position: int | None, flags: dict[str, bool]
) -> None:
    history = MemoryHistory("a")
    with Pub(history=history) as pub, hand("future", pub) as by_hand:
        epoch = history.epoch
        ask(
            by_hand,
            Ask(1, False, True, (Position(epoch % 1000 + 1 if position is None else epoch, position or 0),), "a"),
        )
        assert answers(by_hand, 1) == [Replay(1, epoch, 0, end=True, **flags)]


@pytest.mark.parametrize(
    "content",
    [
        b"\x05",
        b"\x05" + struct.pack(">IBB", 0, 0, 0) + b"\x00\x01a",
        b"\x05" + struct.pack(">IBB", 1, 0, 17) + bytes(16 * 17) + b"\x00\x01a",
        b"\x05" + struct.pack(">IBB", 1, 0, 0) + b"\x00\x04a..b",
        b"\x06" + struct.pack(">IQQB", 1, 1, 1, 0),
        b"\x07" + struct.pack(">IQQQ", 0, 1, 1, 0) + b"\x00\x01a",
    ],
)
def test_a_pub_drops_what_breaks_a_rule_and_the_pipe_lives(content: bytes) -> None:
    with Pub(history=MemoryHistory("a")) as pub, hand("broken", pub) as by_hand:
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=content))
        ask(by_hand, Ask(1, False, False, (), "a"))
        assert isinstance(answers(by_hand, 1)[0], Replay)
        assert pub.counters.drops == {"garbage": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"\x06", b"\x06" + struct.pack(">IQQB", 1, 2**53, 1, 0),
        b"\x07" + struct.pack(">IQQQ", 0, 1, 1, 1) + b"\x00\x01a",
        b"\x07" + struct.pack(">IQQQ", 0, 1, 1, 0), b"\x07" + struct.pack(">IQQQ", 0, 1, 1, 0) + b"\x00\x02\xff\xff",
    ],
)  # fmt: skip
def test_a_sub_drops_what_breaks_a_rule_and_the_pipe_lives(content: bytes) -> None:
    with Socket() as by_hand, Sub() as sub:
        sub.dial(by_hand.listen("inproc://broken").address)
        sub.subscribe("a", recover=True)
        question = read_ask(by_hand.recv(LONG))
        assert by_hand.recv(LONG) == b"\x01a"
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=content))
        by_hand.send_all(publication("a", b"1"))
        assert sub.recv(LONG) == ("a", b"1") and sub.counters.drops == {"garbage": 1}
        assert question.pattern == "a" and question.recover and question.retained


def test_what_comes_twice_is_counted() -> None:
    with Socket() as by_hand, Sub() as sub:
        sub.dial(by_hand.listen("inproc://twice").address)
        for pattern in ("a", "b"):
            sub.subscribe(pattern, recover=True)
        asks = [by_hand.recv(LONG) for _ in range(4)][::2]
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=Replay(read_ask(asks[0]).id, 1, 0, end=True).encode()))
        # The answer for b, which has not come yet, will cover this one.
        by_hand.send_all(publication("b", b"early"))
        for offset in (1, 1, 2):
            positioned = Positioned(0, 1, offset, offset - 1, publication("a", b"%d" % offset))
            by_hand.send_msg(Message(CONTROL | TO_ALL, content=positioned.encode()))
        assert receive(sub, 2) == [("a", b"1"), ("a", b"2")]
        assert sub.counters.drops == {"repeated": 2}
        (pipe,) = sub.pipes.values()
        assert pipe.counters.drops == {"repeated": 2}


def test_answers_to_no_question_are_dropped() -> None:
    with Socket() as by_hand, Sub() as sub:
        sub.dial(by_hand.listen("inproc://unasked").address)
        sub.subscribe("a")
        assert by_hand.recv(LONG) == b"\x01a"
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=Replay(1, 2, 3).encode()))
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=Positioned(0, 1, 1, 0, publication("a", b"")).encode()))
        by_hand.send_all(publication("a", b"1"))
        assert sub.recv(LONG) == ("a", b"1")
        assert sub.counters.drops == {"garbage": 1, "not subscribed": 1}


def test_a_0x05_without_its_0x01_is_forgotten_if_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmultisocket.protocol.gatekeeper._MAX_ASKS", 2)
    with Pub(history=MemoryHistory(">")) as pub, hand("alone", pub) as by_hand:
        for source in (b"\0\0\0\1", b"\0\0\0\2", b"\0\0\0\3"):
            content = Ask(1, False, False, (), "a").encode()
            by_hand.send_msg(Message(CONTROL | TO_ALL, source=source, content=content))
        for source in (b"\0\0\0\1", b"\0\0\0\2"):
            by_hand.send_msg(Message(CONTROL | TO_ALL, source=source, content=b"\x01a"))
        got = answers(by_hand, 2)
        assert b"\x02a" in got and any(isinstance(each, Replay) for each in got)


# Replays


def test_many_replays_take_turns_and_others_are_served_meanwhile() -> None:
    history = MemoryHistory("a.>", max_entries=20_000)
    with Pub(history=history) as pub, Sub() as live:
        live.dial(pub.listen("inproc://live").address)
        live.subscribe("b", LONG)
        for number in range(10_000):
            pub.publish(f"a.{number}", b"")
        with hand("many", pub, **{"socket.recv_queue_size": 30_000}) as by_hand:
            epoch = history.epoch
            ask(by_hand, *(Ask(n + 1, False, True, (Position(epoch, 0),), f"a.{n}") for n in range(10_000)))
            wait_until(lambda: by_hand.queued >= 100)
            pub.publish("b", b"meanwhile")
            assert live.recv(LONG) == ("b", b"meanwhile")
            assert by_hand.queued < 30_000
            wait_until(lambda: by_hand.queued == 30_000, LONG)
            kinds = {type(each).__name__ for each in answers(by_hand, 30_000)}
            assert kinds == {"Replay", "Positioned"}
            wait_until(lambda: not pub._keeper.replays.queues)  # type: ignore[union-attr]
            assert pub._keeper.replays._pins.size == 0  # type: ignore[union-attr]


def test_a_subscriber_that_does_not_read_its_replay_holds_up_nobody_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replaying_module, "_MAX_ADDED", 5)
    history = MemoryHistory("a")
    with Pub({"socket.send_queue_size": 1}, history=history) as pub, Sub() as sub:
        for number in range(100):
            pub.publish("a", b"%d" % number)
        sub.dial(pub.listen("inproc://reads").address)
        sub.subscribe("a", LONG, recover=True)
        with hand("stuck", pub, **{"socket.recv_queue_size": 1}) as stuck:
            ask(stuck, Ask(1, False, True, (Position(history.epoch, 0),), "a"))
            replays = pub._keeper.replays
            assert replays is not None
            wait_until(lambda: bool(replays._pins.size))
            for number in range(10):
                pub.publish("a", b"%d" % number)
                assert sub.recv(LONG) == ("a", b"%d" % number)
            (pipe,) = (pipe for pipe in replays.queues)
            assert "overflow" not in pipe.counters.drops, "the history has what does not wait"
        wait_until(lambda: not replays.queues and not replays._pins.size)
        wait_until(lambda: not replays._running and len(replays.askings) == 1)


def test_replays_that_take_too_much_memory_are_a_gap() -> None:
    history = MemoryHistory("a.>")
    with Pub({"protocol.pubsub.replay_bytes": 1000}, history=history) as pub, hand("memory", pub) as by_hand:
        pub.publish("a.x", bytes(100), retain=True)
        for _ in range(10):
            pub.publish("a.y", bytes(100))
        epoch = history.epoch
        ask(by_hand, Ask(1, True, True, (Position(epoch, 0),), "a.*"))
        assert answers(by_hand, 3) == [
            Replay(1, epoch, 11, gap=True), Positioned(1, epoch, 1, 0, publication("a.x", bytes(100))),
            Replay(1, epoch, 11, end=True),
        ]  # fmt: skip


def test_a_subscription_that_ends_ends_its_replay() -> None:
    history = MemoryHistory("a")
    with Pub({"socket.send_queue_size": 1}, history=history) as pub:
        for _ in range(100):
            pub.publish("a", b"")
        with hand("ends", pub, **{"socket.recv_queue_size": 1}) as by_hand:
            ask(by_hand, Ask(1, False, True, (Position(history.epoch, 0),), "a"))
            replays_of = lambda: pub._keeper.replays  # noqa: E731
            wait_until(lambda: replays_of() is not None and replays_of()._pins.size > 0)
            by_hand.send_msg(Message(CONTROL | TO_ALL, content=b"\x00a"))
            wait_until(lambda: not pub.subscriptions)
            got = 0
            while replays_of().queues or by_hand.queued:
                by_hand.recv_msg(LONG)
                got += 1
                gevent.idle()
            assert got < 10 and not replays_of().askings and replays_of()._pins.size == 0


@contextmanager
def replay_that_waits(name: str) -> Iterator[tuple[Pub, MemoryHistory, Socket]]:
    """A Pub, its history with 100 publications of "a", and a plain Socket that has to read its replay to go on."""
    # The memory that replays may take is enough for one replay, and not for the places of two.
    options = {"socket.send_queue_size": 1, "protocol.pubsub.replay_bytes": 2000}
    history = MemoryHistory("a")
    with Pub(options, history=history) as pub:
        for _ in range(100):
            pub.publish("a", b"")
        with hand(name, pub, **{"socket.recv_queue_size": 1}) as by_hand:
            ask(by_hand, Ask(1, False, True, (Position(history.epoch, 0),), "a"))
            wait_until(lambda: pub._keeper.replays is not None and pub._keeper.replays._pins.size > 0)
            yield pub, history, by_hand


def read_replays(by_hand: Socket, number: int, epoch: int) -> list[Replay | Positioned | bytes]:
    """Return what comes until the end of a replay."""
    got = answers(by_hand, 1)
    while not (isinstance(last := got[-1], Replay) and (last.id, last.epoch, last.end) == (number, epoch, True)):
        got += answers(by_hand, 1)
    return got


def test_a_subscriber_that_asks_again_during_its_replay_gets_another_one_instead() -> None:
    with replay_that_waits("instead") as (pub, history, by_hand):
        ask(by_hand, Ask(2, False, True, (Position(history.epoch, 0),), "a"))
        got = read_replays(by_hand, 2, history.epoch)
        assert Replay(2, history.epoch, 100, recovered=True) in got
        assert sum(isinstance(each, Positioned) and each.id == 2 for each in got) == 100
        replays = pub._keeper.replays
        assert replays is not None and replays._pins.size == 0 and not replays._running


def test_another_history_begins_the_replays_again_that_run() -> None:
    with replay_that_waits("begins-again") as (pub, history, by_hand):
        history.epoch += 1
        pub.replay_again()
        # Its position is of the history before: it meets this one for the first time.
        got = read_replays(by_hand, 1, history.epoch)
        assert got[-1] == Replay(1, history.epoch, 100, first_meeting=True, end=True)
        assert len(got) < 10


def test_who_gets_what_is_remembered_for_some_topics_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying_module, "_MAX_SPLITS", 3)
    with Pub(history=MemoryHistory("a.>")) as pub, Sub() as sub:
        sub.dial(pub.listen("inproc://splits").address)
        sub.subscribe("a.*", LONG, recover=True)
        remembered = set()
        for number in range(10):
            pub.publish(f"a.{number}", b"")
            replays = pub._keeper.replays
            assert replays is not None
            remembered.add(len(replays.splits))
        assert remembered == {1, 2, 3}
        assert receive(sub, 10) == [(f"a.{number}", b"") for number in range(10)]


def test_topics_that_get_a_value_while_a_replay_begins_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "_PORTION", 2)
    with Pub() as pub, Sub() as sub:
        for number in range(20):
            pub.publish(f"a.{number:02}", b"", retain=True)
        sub.dial(pub.listen("inproc://values").address)
        sub.on_gap(lambda gap: pytest.fail("nothing is missing"))
        sub.subscribe("a.*")
        topics: list[str] = []
        for number in range(20, 30):
            pub.publish(f"a.{number:02}", b"", retain=True)
            gevent.sleep(0)
        while len(topics) < 30:
            topics.append(sub.recv(LONG)[0])
        assert topics == [f"a.{number:02}" for number in range(30)]


def test_another_history_is_told_to_all_that_ask() -> None:
    gaps: list[Gap] = []
    history = MemoryHistory("a")
    with Pub(history=history) as pub, Sub() as sub:
        sub.dial(pub.listen("inproc://another").address)
        sub.on_gap(gaps.append)
        sub.subscribe("a", LONG, recover=True)
        pub.publish("a", b"1")
        assert sub.recv(LONG) == ("a", b"1")
        for content in (b"2", b"3"):
            history.epoch += 1
            pub.replay_again()
            wait_until(lambda: sub._recovery is not None and sub._recovery._positions.knows("a", history.epoch))
            assert gaps == []
            pub.publish("a", content)
            assert sub.recv(LONG) == ("a", content) and pub.subscriptions == 1
            assert gaps == [Gap("a", None, "gone")], "it is told before what follows, and once"
            gaps.clear()


def test_what_a_history_has_got_at_once_comes_as_fast_as_a_subscriber_reads() -> None:
    history = MemoryHistory("a", "b")
    with Pub(history=history) as pub, Sub() as sub, Sub() as plain:
        address = pub.listen("inproc://at-once").address
        sub.on_gap(lambda gap: pytest.fail("nothing is missing"))
        for each in (sub, plain):
            each.dial(address)
            for topic in ("a", "b"):
                each.subscribe(topic, LONG)
        pub.publish("a", b"0")
        assert sub.recv(LONG) == plain.recv(LONG) == ("a", b"0")
        appended = [history.append("a", b"%d" % number) for number in range(1, 1000)]
        pub.replay_behind(1, {"a"})
        for entry in appended:
            assert entry is not None
            pub.publish_entry(entry)
        pub.publish("b", b"")
        got = receive(sub, 1000)
        assert [content for topic, content in got if topic == "a"] == [b"%d" % number for number in range(1, 1000)]
        pub.publish("a", b"live")
        assert sub.recv(LONG) == ("a", b"live")
        assert "repeated" not in sub.counters.drops
        # It has no positions, so it gets what there is room for.
        assert plain.recv(LONG) == ("a", b"1")


def test_an_asking_that_is_held_back_is_not_answered_because_the_history_is_another_one() -> None:
    history = MemoryHistory("a")
    releases: list[Any] = []

    def hook(subscriber: RemoteSub, pattern: str, release: Any) -> bool:
        releases.append(release)
        return True

    with Pub(history=history) as pub, Sub() as sub:
        pub.hold_acknowledgements(hook)
        sub.dial(pub.listen("inproc://held-again").address)
        sub.on_gap(lambda gap: pytest.fail("nothing is missing"))
        sub.subscribe("a", recover=True)
        wait_until(lambda: releases)
        history.epoch += 1
        pub.replay_again()
        with pytest.raises(Timeout):
            sub.subscribe("a", 0.05, recover=True)
        releases[0]()
        sub.subscribe("a", LONG, recover=True)
        pub.publish("a", b"1")
        assert sub.recv(LONG) == ("a", b"1")


def test_publications_with_a_position_may_be_as_long_as_others_less_what_that_takes() -> None:
    with Pub({"socket.max_send_content_length": 100}, history=MemoryHistory("a")) as pub, Sub() as sub:
        sub.dial(pub.listen("inproc://long").address)
        sub.subscribe("a", LONG, recover=True)
        with pytest.raises(MessageTooLong):
            pub.publish("a", bytes(69))
        pub.publish("a", bytes(68))
        assert sub.recv(LONG) == ("a", bytes(68))
        pub.publish("b", bytes(97))


# Acknowledgements that are held back


@pytest.mark.parametrize("recover", [False, True])
def test_an_acknowledgement_waits_until_it_is_released(recover: bool, net: Net) -> None:
    held: list[Any] = []

    def hook(subscriber: RemoteSub, pattern: str, release: Any) -> bool:
        if pattern == "a":
            held.append(release)
        return pattern == "a"

    with Pub() as pub, Sub() as sub:
        pub.publish("a", b"value", retain=True)
        pub.hold_acknowledgements(hook)
        net.connect(pub, sub)
        sub.subscribe("b", LONG, recover=recover)
        with pytest.raises(Timeout):
            sub.subscribe("a", 0.02, recover=recover)
        wait_until(lambda: pub.subscriptions == 2 and len(held) == 1)
        waiting = gevent.spawn(sub.subscribe, "a", LONG)
        gevent.idle()
        assert not waiting.ready()
        held.pop()()
        waiting.get(timeout=LONG)
        assert sub.recv(LONG) == ("a", b"value")
        assert not held


def test_a_subscription_that_ends_is_answered_with_the_next_one() -> None:
    held: list[Any] = []

    def hook(subscriber: RemoteSub, pattern: str, release: Any) -> bool:
        held.append(release)
        return True

    with Pub() as pub, hand("held", pub) as by_hand:
        pub.hold_acknowledgements(hook)
        for content in (b"\x01a", b"\x00a", b"\x01a"):
            by_hand.send_msg(Message(CONTROL | TO_ALL, content=content))
        wait_until(lambda: len(held) == 2)
        held[0]()
        gevent.idle()
        assert by_hand.queued == 0
        held[1]()
        held[1]()
        # For the one that has ended, too.
        assert [by_hand.recv(LONG) for _ in range(2)] == [b"\x02a"] * 2
        gevent.idle()
        assert by_hand.queued == 0
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=b"\x01b"))
        wait_until(lambda: len(held) == 3)
        cut(pub)
        held[2]()
        assert not pub._gate.holding._held


def test_a_hook_that_fails_or_releases_at_once_holds_nothing_back(caplog: pytest.LogCaptureFixture) -> None:
    def fails(subscriber: RemoteSub, pattern: str, release: Any) -> bool:
        raise RuntimeError("no use")

    def releases(subscriber: RemoteSub, pattern: str, release: Any) -> bool:
        release()
        return True

    with Pub() as pub, Sub() as sub:
        sub.dial(pub.listen("inproc://fails").address)
        pub.hold_acknowledgements(fails)
        sub.subscribe("a", LONG)
        assert "a hook for acknowledgements failed" in caplog.text
        pub.hold_acknowledgements(releases)
        sub.subscribe("b", LONG)
        pub.hold_acknowledgements(None)
        sub.subscribe("c", LONG, recover=True)
        assert pub.subscriptions == 3


@pytest.mark.parametrize("error", [gevent.GreenletExit, gevent.Timeout])
@pytest.mark.parametrize("rights", [False, True])
def test_whatever_a_hook_raises_holds_nothing_back(error: type[BaseException], rights: bool) -> None:
    def fails(subscriber: RemoteSub, pattern: str, release: Any) -> bool:
        raise error

    with Pub(authorize=(lambda remote, pattern: True) if rights else None) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        pub.hold_acknowledgements(fails)
        for pattern in "abc":
            sub.subscribe(pattern, LONG)
        assert len(pub.pipes) == 1


def test_entries_of_others_must_have_a_topic_and_a_pub_that_is_open() -> None:
    pub = Pub(history=MemoryHistory("a"))
    assert pub.publish_entry(Entry(1, 0, "a", b"")) == 0
    pub.close()
    with pytest.raises(Closed):
        pub.publish_entry(Entry(2, 1, "a", b""))


@pytest.mark.parametrize("rights", ["none", "own copies"])
def test_a_full_pipe_with_positions_keeps_nothing_from_one_without(rights: str) -> None:
    own = {"authorize": lambda remote, pattern: True, "authorize_through_switches": True} if rights != "none" else {}
    options = {"socket.send_overflow": "block", "socket.send_queue_size": 1}
    with Pub(options, history=MemoryHistory(">"), **own) as pub, Sub() as plain:
        with hand("full", pub, **{"socket.recv_queue_size": 1}) as full:
            ask(full, Ask(1, False, False, (), "a"))
            assert len(answers(full, 1)) == 1
            plain.dial(pub.listen("inproc://not-full").address)
            plain.subscribe("a", LONG)
            count = 0
            with pytest.raises(Timeout) as caught:
                for count in range(10):
                    assert pub.publish("a", b"%d" % count, timeout=0.02) == 2
                    assert plain.recv(LONG) == ("a", b"%d" % count)
            assert caught.value.sent == 1
            assert plain.recv(LONG) == ("a", b"%d" % count)


@pytest.mark.parametrize("rights", ["none", "own copies"])
def test_what_several_greenlets_publish_at_once_is_in_order_although_publish_waits(direct: Net, rights: str) -> None:
    own = {"authorize": lambda remote, pattern: True, "authorize_through_switches": True} if rights != "none" else {}
    options = {"socket.send_overflow": "block", "socket.send_queue_size": 2}
    with Pub(options, history=MemoryHistory(">"), **own) as pub, Sub() as slow, Sub() as fast:
        direct.connect(pub, slow, fast)
        gaps: list[Gap] = []
        for sub in (slow, fast):
            sub.on_gap(gaps.append)
            sub.subscribe("a", LONG, recover=True)
        # More than the queues and the kernel take.
        content = bytes(100_000)
        publishing = [gevent.spawn(lambda: [pub.publish("a", content) for _ in range(20)]) for _ in range(10)]
        reading = gevent.spawn(lambda: [fast.recv(LONG) for _ in range(200)])
        assert [slow.recv(LONG) for _ in range(200)] == reading.get() == [("a", content)] * 200
        gevent.joinall(publishing, raise_error=True)
        assert gaps == []
