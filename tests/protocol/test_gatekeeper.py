"""Each asking gets its answer: a subscriber counts them, so one that is missing lets a later subscription wait."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import gevent.event
import pytest

from gmultisocket import Socket
from gmultisocket.errors import SubscriptionRefused
from gmultisocket.protocol import Pub, RemoteSub, Sub, gatekeeper
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, Message
from tests.protocol.net import Net

LONG = 20.0
END, BEGIN = b"\x00a", b"\x01a"


def say(by_hand: Socket, *contents: bytes) -> None:
    for content in contents:
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=content))
        gevent.idle()


def answers(pub: Pub, by_hand: Socket) -> bytes:
    """Return the first byte of each message that comes until nothing is left to send."""
    kinds = b""
    while by_hand.queued or pub._outbox.size() or any(pipe.queued for pipe in pub.pipes.values()):
        message = by_hand.recv_msg(LONG)
        if message.content != b"\x04" and message.flags & CONTROL:
            kinds += message.content[:1]
        gevent.idle()
    return kinds


def only_remote(pub: Pub) -> RemoteSub:
    (pipe,) = pub.pipes.values()
    return RemoteSub(pipe, pipe.path)


def outcome(sub: Sub) -> str:
    """Subscribe. Return why that is refused, "" if it is not."""
    try:
        sub.subscribe("a", LONG)
    except SubscriptionRefused as refusal:
        return refusal.reason
    return ""


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("allowed", [None, True, False])
def test_one_that_subscribes_again_before_the_answer_gets_the_answer_to_that(
    net: Net, allowed: bool | None, pause: bool
) -> None:
    releases: list[Callable[[], None]] = []
    decisions: list[gevent.event.AsyncResult] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        decisions.append(gevent.event.AsyncResult())
        return bool(decisions[-1].get(timeout=LONG))

    def hold(subscriber: RemoteSub, pattern: str, release: Callable[[], None]) -> bool:
        releases.append(release)
        return True

    deciding = allowed is not None
    asked = decisions if deciding else releases
    with Pub(authorize=authorize if deciding else None, authorize_through_switches=deciding) as pub, Sub() as sub:
        if not deciding:
            pub.hold_acknowledgements(hold)
        net.connect(pub, sub)
        sub.subscribe("a")
        wait_until(lambda: len(asked) == 1)
        sub.unsubscribe("a")
        if pause:
            wait_until(lambda: pub.reach("a") == 0)
            gevent.idle()
        waiting = gevent.spawn(outcome, sub)
        wait_until(lambda: len(asked) == 2)
        for turn in range(2):
            gevent.idle()
            assert not waiting.ready()
            if deciding:
                decisions[turn].set(allowed)
            else:
                releases[turn]()
        assert waiting.get(timeout=LONG) == ("not allowed" if allowed is False else "")
        if allowed is not False:
            assert pub.publish("a", b"1") == 1 and sub.recv(LONG) == ("a", b"1")


@pytest.mark.parametrize("allowed", [True, False])
def test_an_answer_that_waits_for_a_full_pipe_is_not_lost_to_the_next_one(allowed: bool) -> None:
    with (
        Pub({"socket.send_queue_size": 1}, authorize=lambda subscriber, pattern: allowed) as pub,
        Socket({"socket.recv_queue_size": 1}) as by_hand,
    ):
        by_hand.dial(pub.listen("inproc://gatekeeper").address)
        for _ in range(6):
            # A repetition may be answered together with what it repeats.
            say(by_hand, BEGIN, END)
        say(by_hand, BEGIN, BEGIN)
        assert answers(pub, by_hand).count(b"\x02" if allowed else b"\x03") in (7, 8)


def test_what_answers_take_for_one_that_does_not_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gatekeeper, "_MAX_UNSENT", 5000)
    with Pub({"socket.send_queue_size": 1}) as pub, Socket({"socket.recv_queue_size": 1}) as by_hand:
        by_hand.dial(pub.listen("inproc://gatekeeper").address)
        say(by_hand, *[BEGIN, END] * 100, BEGIN)
        (pipe,) = pub.pipes.values()
        assert 4000 < pub._outbox.waiting_bytes(pipe) < 6000
        assert answers(pub, by_hand)[-1:] == b"\x02"


@pytest.mark.parametrize("then", [b"", END, BEGIN])
def test_a_revocation_is_told_unless_the_subscriber_has_ended_or_renewed_it_meanwhile(then: bytes) -> None:
    with Pub({"socket.send_queue_size": 1}) as pub, Socket({"socket.recv_queue_size": 1}) as by_hand:
        by_hand.dial(pub.listen("inproc://gatekeeper").address)
        say(by_hand, BEGIN)
        by_hand.recv_msg(LONG)
        assert answers(pub, by_hand) == b"\x02"
        # These fill the way.
        for number in range(4):
            say(by_hand, b"\x01%d" % number)
        pub.revoke(only_remote(pub), "a")
        if then:
            say(by_hand, then)
        assert answers(pub, by_hand).replace(b"\x02", b"", 4) == {b"": b"\x03", END: b"", BEGIN: b"\x02"}[then]


@pytest.mark.parametrize("recover", [False, True])
def test_what_the_program_ends_before_it_was_acknowledged_is_refused(recover: bool) -> None:
    told: list[str] = []
    with Pub() as pub, Sub() as sub:
        pub.hold_acknowledgements(lambda subscriber, pattern, release: True)
        sub.on_refused(lambda refusal: told.append(refusal.reason))
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a", recover=recover)
        wait_until(lambda: pub.subscriptions == 1)
        assert pub.unsubscribe_peer(only_remote(pub), "a") and not pub.unsubscribe_peer(only_remote(pub), "a")
        wait_until(lambda: told == ["revoked"])
        assert pub.subscriptions == 0


def test_what_is_owed_is_bounded_and_goes_with_the_pipe() -> None:
    with Pub() as pub, Socket() as by_hand:
        pub.hold_acknowledgements(lambda subscriber, pattern, release: True)
        by_hand.dial(pub.listen("tcp://127.0.0.1:0").address)
        for number in range(1500):
            for kind in (b"\x01", b"\x00"):
                by_hand.send_msg(Message(CONTROL | TO_ALL, content=kind + b"%d" % number))
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=b"\x01last"))
        wait_until(lambda: pub.reach("last") == 1)
        (owed,) = pub._gate._owed._pipes.values()
        assert [*owed] == [(only_remote(pub).source, str(number)) for number in range(1500 - 1024, 1500)]
        only_remote(pub).pipe.close("for the test")
        wait_until(lambda: not pub._gate._owed._pipes)
