"""Rights: who may subscribe to what, and that a right holds everywhere and ends when it is revoked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gmultisocket import Pipe, Socket, Switch
from gmultisocket.errors import BadTopic, NotSupported, SubscriptionRefused
from gmultisocket.protocol import MemoryHistory, Pub, RemoteSub, Sub
from gmultisocket.protocol import rights as rights_module
from gmultisocket.protocol import subscribers as subscribers_module
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, Message, encode, pack_id
from tests.addresses import plain_connection
from tests.protocol.net import Net

LONG = 20.0
QUICK = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.02}


def only_pipe(end: Pub | Sub | Socket) -> Pipe:
    (pipe,) = end.pipes.values()
    return pipe


def say(by_hand: Socket, kind: bytes, pattern: str, source: bytes = b"") -> None:
    by_hand.send_msg(Message(CONTROL | TO_ALL, source=source, content=kind + pattern.encode()), LONG)


def hear(by_hand: Socket) -> bytes:
    """Return the content that a Pub sends next, other than "who is there?"."""
    while (content := by_hand.recv(LONG)) == b"\x04":
        pass
    return content


def only_public(subscriber: RemoteSub, pattern: str) -> bool | str:
    return pattern.startswith("public.")


@contextmanager
def switched() -> Iterator[tuple[str, str]]:
    """A switch with a listener at either side; their addresses."""
    with Socket() as back, Socket() as front, Switch(back, front):
        yield back.listen("tcp://127.0.0.1:0").address, front.listen("tcp://127.0.0.1:0").address


def reason_for(sub: Sub, pattern: str) -> str:
    with pytest.raises(SubscriptionRefused) as caught:
        sub.subscribe(pattern, LONG)
    return caught.value.reason


# Deciding


def test_authorize_decides_what_a_subscriber_gets(direct: Net) -> None:
    seen: list[tuple[bool, bool, str]] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool | str:
        assert subscriber.identity == subscriber.pipe.identity
        seen.append((subscriber.direct, subscriber.pipe.id in pub.pipes, pattern))
        return "only members" if pattern == ">" else pattern.startswith("public.")

    with Pub(authorize=authorize) as pub, Sub() as sub:
        direct.connect(pub, sub)
        sub.subscribe("public.*", LONG)
        assert reason_for(sub, ">") == "only members"
        assert reason_for(sub, "private") == "not allowed"
        assert seen == [(True, True, "public.*"), (True, True, ">"), (True, True, "private")]
        assert pub.counters.drops == {"refused subscription": 2} and pub.subscriptions == 1
        assert (pub.publish("private", b""), pub.publish("public.x", b"1")) == (0, 1)
        assert sub.recv(LONG) == ("public.x", b"1")


def fails(subscriber: RemoteSub, pattern: str) -> bool:
    raise RuntimeError("authorize of the test fails")


def hangs(subscriber: RemoteSub, pattern: str) -> bool:
    while True:
        try:
            Event().wait()
        except gevent.Timeout:
            pass
    return True


def decides_nothing(subscriber: RemoteSub, pattern: str) -> Any:
    return None


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (fails, "the publisher could not decide"),
        (hangs, "the publisher could not decide in time"),
        (decides_nothing, "the publisher could not decide"),
    ],
)
def test_where_authorize_does_not_decide_it_is_refused_and_logged_once(
    broken: Callable[[RemoteSub, str], bool], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gmultisocket")

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        return pattern == "good" or broken(subscriber, pattern)

    with Pub({"protocol.pubsub.authorize_timeout": 0.05}, authorize=authorize) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        for pattern in ("a", "b", "c"):
            assert reason_for(sub, pattern) == reason
        sub.subscribe("good", LONG)
        assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


@pytest.mark.parametrize("error", [gevent.GreenletExit, gevent.Timeout, RuntimeError])
def test_whatever_authorize_raises_is_no_permission(error: type[BaseException]) -> None:
    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        if pattern == "good":
            return True
        raise error("of the test")

    with Pub(authorize=authorize) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        assert reason_for(sub, "bad") == "the publisher could not decide"
        sub.subscribe("good", LONG)
        assert (pub.publish("bad", b""), pub.publish("good", b"")) == (0, 1)


def test_a_greenlet_of_authorize_that_something_kills_gives_no_permission() -> None:
    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        if pattern == "bad":
            gevent.getcurrent().kill()
        return True

    with Pub(authorize=authorize) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        assert reason_for(sub, "bad") == "the publisher could not decide"
        sub.subscribe("good", LONG)


def test_nothing_is_sent_before_it_has_decided() -> None:
    decide = Event()

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        return decide.wait(LONG)

    with Pub(authorize=authorize) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        waiting = gevent.spawn(sub.subscribe, "a", LONG)
        wait_until(lambda: pub._gate._rights is not None and pub._gate._rights.undecided(only_pipe(pub)) == 1)
        assert (pub.publish("a", b"early"), pub.subscriptions) == (0, 0)
        assert not waiting.ready()
        decide.set()
        waiting.get(timeout=LONG)
        assert pub.publish("a", b"right") == 1
        assert sub.recv(LONG) == ("a", b"right")


def test_a_peer_whose_calls_hang_makes_no_other_one_wait() -> None:
    held = Event()
    running: list[str] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        if pattern.startswith("slow"):
            running.append(pattern)
            held.wait(LONG)
        return True

    options = {"protocol.pubsub.max_authorizing": 16}
    with Pub(options, authorize=authorize) as pub, Sub() as slow, Sub() as quick:
        address = pub.listen("tcp://127.0.0.1:0").address
        slow.dial(address)
        for number in range(50):
            slow.subscribe(f"slow.{number}")
        wait_until(lambda: len(running) == 2)
        quick.dial(address)
        for number in range(10):
            quick.subscribe(f"quick.{number}", LONG)
        assert running == ["slow.0", "slow.1"]
        held.set()
        slow.subscribe("slow.49", LONG)
        assert running == [f"slow.{number}" for number in range(50)]
        wait_until(lambda: pub._gate._rights is not None and not pub._gate._rights._pipes)


def test_the_number_of_calls_at_once_is_bounded() -> None:
    held = Event()
    now, most = 0, 0

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        nonlocal now, most
        now += 1
        most = max(most, now)
        held.wait(LONG)
        now -= 1
        return True

    with Pub({"protocol.pubsub.max_authorizing": 3}, authorize=authorize) as pub, ExitStack() as stack:
        address = pub.listen("tcp://127.0.0.1:0").address
        for number in range(10):
            sub = stack.enter_context(Sub())
            sub.dial(address)
            sub.subscribe(f"a.{number}")
        wait_until(lambda: now == 3)
        held.set()
        wait_until(lambda: pub.subscriptions == 10)
        assert most == 3


def test_what_is_undecided_counts_for_the_limit_of_patterns() -> None:
    held = Event()
    options = {"protocol.pubsub.max_patterns": 10}
    with Pub(options, authorize=lambda subscriber, pattern: held.wait(LONG)) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        for number in range(20):
            sub.subscribe(f"a.{number}")
        wait_until(lambda: pub.counters.drops == {"refused subscription": 10})
        held.set()
        wait_until(lambda: pub.subscriptions == 10)


def test_unsubscribing_before_it_has_decided_and_asking_again() -> None:
    held = Event()
    calls: list[str] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        calls.append(pattern)
        return held.wait(LONG)

    with Pub(authorize=authorize) as pub, Sub() as sub, Socket() as by_hand:
        address = pub.listen("tcp://127.0.0.1:0").address
        sub.dial(address)
        sub.subscribe("left")
        sub.subscribe("again")
        wait_until(lambda: len(calls) == 2)
        sub.unsubscribe("left")
        sub.unsubscribe("again")
        waiting = gevent.spawn(sub.subscribe, "again", LONG)
        wait_until(lambda: calls.count("again") == 2)
        gevent.idle()
        assert not waiting.ready()
        # One that goes meanwhile.
        by_hand.dial(address)
        say(by_hand, b"\x01", "gone")
        wait_until(lambda: "gone" in calls)
        by_hand.close()
        wait_until(lambda: len(pub.pipes) == 1)
        held.set()
        waiting.get(timeout=LONG)
        assert pub.subscriptions == 1
        assert (pub.publish("left", b""), pub.publish("again", b""), pub.publish("gone", b"")) == (0, 1, 0)


def test_a_repetition_while_it_decides_is_no_second_asking() -> None:
    held = Event()
    calls: list[str] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        calls.append(pattern)
        return held.wait(LONG)

    with Pub(authorize=authorize) as pub, Socket() as by_hand:
        by_hand.dial(pub.listen("tcp://127.0.0.1:0").address)
        for _ in range(3):
            say(by_hand, b"\x01", "a")
        wait_until(lambda: only_pipe(pub).messages_received == 3)
        held.set()
        assert hear(by_hand) == b"\x02a"
        # Nor is one of a subscription that it has.
        say(by_hand, b"\x01", "a")
        assert hear(by_hand) == b"\x02a"
        assert calls == ["a"]


def test_after_a_reconnect_it_decides_again() -> None:
    allowed = {"a", "b"}
    told: list[str] = []
    with Pub(authorize=lambda subscriber, pattern: pattern in allowed) as pub, Sub(QUICK) as sub:
        sub.on_refused(lambda refusal: told.append(refusal.pattern))
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        for pattern in ("a", "b"):
            sub.subscribe(pattern, LONG)
        allowed.remove("a")
        only_pipe(pub).close()
        wait_until(lambda: told == ["a"] and pub.subscriptions == 1)
        assert (pub.publish("a", b""), pub.publish("b", b"")) == (0, 1)


# Behind switches


def test_behind_a_switch_it_is_refused(net: Net) -> None:
    calls: list[str] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        calls.append(pattern)
        return True

    with Pub(authorize=authorize) as pub, Sub() as sub:
        net.connect(pub, sub)
        if net.switches:
            assert reason_for(sub, "a") == "not through a switch"
            assert calls == [] and pub.publish("a", b"") == 0
            remote = RemoteSub(only_pipe(pub), only_pipe(pub).path + pack_id(1))
            assert remote.identity is None and not remote.direct
            with pytest.raises(NotSupported, match="authorize_through_switches"):
                pub.subscribe_peer(remote, "a")
        else:
            sub.subscribe("a", LONG)
            assert calls == ["a"]


def test_a_made_up_source_is_one_behind_a_switch() -> None:
    with Pub(authorize=lambda subscriber, pattern: True) as pub, Socket() as by_hand:
        by_hand.dial(pub.listen("tcp://127.0.0.1:0").address)
        say(by_hand, b"\x01", "a", source=pack_id(1))
        wait_until(lambda: pub.counters.drops == {"refused subscription": 1})
        assert pub.subscriptions == 0


def test_what_one_behind_a_switch_may_read_another_one_there_does_not_get(net: Net) -> None:
    seen: list[bool] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        seen.append(subscriber.direct)
        return not seen[1:] or pattern != "secret"

    with Pub(authorize=authorize, authorize_through_switches=True) as pub, ExitStack() as stack:
        first, second = stack.enter_context(Sub()), stack.enter_context(Sub())
        third = stack.enter_context(Socket())
        net.connect(pub, first, second, third)
        first.subscribe("secret", LONG)
        assert reason_for(second, "secret") == "not allowed"
        for sub in (first, second):
            sub.subscribe("all", LONG)
        # A new Pub may ask, so one may have been seen twice.
        assert set(seen) == {net.switches == 0}
        pipes = 1 if net.switches else 2
        assert (pub.publish("secret", b"1"), pub.reach("secret")) == (1, 1)
        assert (pub.publish("all", b"2"), pub.reach("all")) == (pipes, pipes)
        assert [first.recv(LONG), first.recv(LONG)] == [("secret", b"1"), ("all", b"2")]
        assert second.recv(LONG) == ("all", b"2")
        assert second.counters.drops == {}
        # To the third one came nothing before.
        say(third, b"\x01", "all")
        assert hear(third) == b"\x02all"
        first.unsubscribe("secret")
        wait_until(lambda: pub.publish("secret", b"3") == 0)


def test_own_copies_of_many_subscribers_come_and_go() -> None:
    with switched() as (pubs, subs), Pub(authorize=only_public, authorize_through_switches=True) as pub:
        pub.dial(pubs)
        with ExitStack() as stack:
            many = [stack.enter_context(Sub()) for _ in range(20)]
            for number, sub in enumerate(many):
                sub.dial(subs)
                for pattern in ("public.all", f"public.{number}.*"):
                    sub.subscribe(pattern, LONG)
            for number in range(20):
                assert pub.publish(f"public.{number}.x", b"%d" % number) == 1
            assert pub.publish("public.all", b"all") == 1
            for number, sub in enumerate(many):
                assert [sub.recv(LONG)[1] for _ in range(2)] == [b"%d" % number, b"all"]
            assert {(*sub.counters.drops,) for sub in many} == {()}
            many[0].close()
            wait_until(lambda: pub.subscriptions == 38)
            assert pub.publish("public.0.x", b"") == 0
        wait_until(lambda: pub.subscriptions == 0)
        assert pub.publish("public.all", b"") == 0
        assert len(pub._subscribers._index) == 0 and pub._subscribers.memory == 0


def test_own_copies_are_dropped_for_one_that_does_not_read() -> None:
    with Pub(authorize=only_public, authorize_through_switches=True) as pub, Sub() as sub:
        address = pub.listen("tcp://127.0.0.1:0").address
        with plain_connection(address) as stuck:
            stuck.sendall(encode(Message(flags=CONTROL | TO_ALL, content=b"\x01public.a")))
            pub.wait_subscribers("public.a", timeout=LONG)
            (pipe,) = pub.pipes.values()
            sub.dial(address)
            sub.subscribe("public.a", LONG)
            while pub.publish("public.a", bytes(60_000)) == 2:
                sub.recv(LONG)
            sub.recv(LONG)
            assert pipe.counters.drops == {"overflow": 1} and pipe.full
            assert pub.publish("public.a", b"more") == 1
            assert sub.recv(LONG) == ("public.a", b"more")


# Ending rights


def subscribers_of(pub: Pub) -> list[RemoteSub]:
    return [RemoteSub(peer.pipe, source) for peer in pub._peers.values() for source in peer.subscribers]


@pytest.mark.parametrize("through", [False, True])
def test_revoking_ends_a_subscription_and_tells_the_subscriber(through: bool) -> None:
    told: list[tuple[str, str]] = []
    with switched() as (pubs, subs), Sub({"protocol.pubsub.refresh_interval": 0.05}) as sub, Sub() as other:
        calls: list[str] = []
        ended: set[str] = set()

        def authorize(subscriber: RemoteSub, pattern: str) -> bool | str:
            calls.append(pattern)
            return pattern not in ended or "the time is over"

        with Pub(authorize=authorize, authorize_through_switches=through) as pub:
            address = pub.listen("tcp://127.0.0.1:0").address
            pub.dial(pubs)
            sub.dial(subs if through else address)
            sub.on_refused(lambda refusal: told.append((refusal.pattern, refusal.reason)))
            for pattern in ("a", "b"):
                sub.subscribe(pattern, LONG)
            (remote,) = subscribers_of(pub)
            ended.add("a")
            assert pub.revoke(remote, "a", "the time is over")
            assert not pub.revoke(remote, "a") and not pub.revoke(remote, "never")
            # Twice, if a repetition was on its way.
            wait_until(lambda: set(told) == {("a", "the time is over")})
            assert (pub.publish("a", b""), pub.publish("b", b"")) == (0, 1)
            gevent.idle()
            asked = len(calls)
            # It does not ask again by itself, and may be let in.
            other.dial(subs if through else address)
            other.subscribe("c", LONG)
            assert calls[asked:] == ["c"]
            assert pub.subscribe_peer(remote, "a")
            assert pub.publish("a", b"again") == 1
            assert [sub.recv(LONG), sub.recv(LONG)] == [("b", b""), ("a", b"again")]
            assert pub.unsubscribe_peer(remote, "a") and not pub.unsubscribe_peer(remote, "a")
            assert pub.publish("a", b"") == 0
            with pytest.raises(BadTopic):
                pub.subscribe_peer(remote, "a..b")
            sub.close()
            wait_until(lambda: pub.subscriptions == 1)
            if not through:
                assert not pub.subscribe_peer(remote, "a") and not pub.revoke(remote, "b")


@pytest.mark.parametrize("reason", ["no more", "revoked"])
def test_what_the_program_ends_before_it_was_decided_does_not_begin(reason: str) -> None:
    held = Event()
    with Pub(authorize=lambda subscriber, pattern: held.wait(LONG)) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        waiting = gevent.spawn(reason_for, sub, "a")
        wait_until(lambda: pub._gate._rights is not None and pub._gate._rights.undecided(only_pipe(pub)) == 1)
        remote = RemoteSub(only_pipe(pub), only_pipe(pub).path)
        if reason == "no more":
            assert pub.revoke(remote, "a", reason) and not pub.revoke(remote, "a", reason)
        else:
            assert pub.unsubscribe_peer(remote, "a") and not pub.unsubscribe_peer(remote, "a")
        held.set()
        assert waiting.get(timeout=LONG) == reason
        assert pub.subscriptions == 0
        sub.subscribe("b", LONG)
        assert pub.subscriptions == 1 and pub.reach("a") == 0
        # It may ask again.
        sub.unsubscribe("a")
        sub.subscribe("a", LONG)
        assert pub.reach("a") == 1


def test_recheck_revokes_what_authorize_refuses_now() -> None:
    allowed = True
    told: list[str] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool | str:
        gevent.sleep(0)
        return allowed or int(pattern.split(".")[1]) % 2 == 0 or "not any more"

    with Pub(authorize=authorize) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.on_refused(lambda refusal: told.append(refusal.pattern))
        for number in range(600):
            sub.subscribe(f"a.{number}")
        sub.subscribe("a.599", LONG)
        wait_until(lambda: pub.subscriptions == 600)
        assert pub.recheck() == 0
        allowed = False
        assert pub.recheck(lambda subscriber, pattern: len(pattern) == 3) == 5
        wait_until(lambda: sorted(told) == [f"a.{number}" for number in range(1, 10, 2)])
        assert pub.recheck() == 295 and pub.subscriptions == 300
    with Pub() as pub, pytest.raises(NotSupported, match="this Pub has no authorize"):
        pub.recheck()


def test_a_recheck_that_is_given_up_revokes_nothing() -> None:
    held = Event()
    ended: list[str] = []
    rechecking = False

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        try:
            return not rechecking or held.wait(LONG)
        finally:
            ended.append(pattern)

    with Pub(authorize=authorize) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a", LONG)
        rechecking = True
        waiting = gevent.spawn(pub.recheck)
        wait_until(lambda: bool(held.linkcount()))
        waiting.kill()
        wait_until(lambda: ended == ["a", "a"])
        gevent.idle()
        assert pub.subscriptions == 1


@pytest.mark.parametrize("chosen", [True, False])
def test_a_permission_from_before_a_recheck_does_not_count(chosen: bool) -> None:
    allowed = True
    held = Event()
    asked: list[bool] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        asked.append(verdict := allowed)
        return held.wait(LONG) and verdict

    with Pub(authorize=authorize) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        waiting = gevent.spawn(sub.subscribe, "a", LONG)
        wait_until(lambda: asked == [True])
        allowed = False
        assert pub.recheck(lambda subscriber, pattern: chosen) == 0
        held.set()
        if chosen:
            with pytest.raises(SubscriptionRefused, match="not allowed"):
                waiting.get(timeout=LONG)
        else:
            waiting.get(timeout=LONG)
        assert asked == [True, False][: 1 + chosen] and pub.publish("a", b"") == (not chosen)


def test_what_is_unsubscribed_is_not_decided_again() -> None:
    held = Event()
    asked: list[str] = []

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        asked.append(pattern)
        return held.wait(LONG)

    with Pub(authorize=authorize) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a")
        wait_until(lambda: asked == ["a"])
        pub.recheck()
        sub.unsubscribe("a")
        sub.subscribe("b")
        wait_until(lambda: asked == ["a", "b"])
        held.set()
        sub.subscribe("c", LONG)
        assert asked == ["a", "b", "c"]


def test_what_the_program_adds_while_it_is_undecided_brings_what_was_missed(direct: Net) -> None:
    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        return pub.subscribe_peer(subscriber, pattern)

    with Pub(authorize=authorize, history=MemoryHistory("a")) as pub, Sub(QUICK) as sub:
        direct.connect(pub, sub)
        sub.subscribe("a", LONG, recover=True)
        pub.publish("a", b"1")
        assert sub.recv(LONG) == ("a", b"1")
        only_pipe(pub).close()
        pub.publish("a", b"2")
        assert sub.recv(LONG) == ("a", b"2")
        pub.publish("a", b"3")
        assert sub.recv(LONG) == ("a", b"3")


def test_what_the_program_adds_while_it_is_undecided_takes_the_promise_to_repeat_along() -> None:
    held = Event()
    options = {"protocol.pubsub.expiry": 0.05}
    authorize = lambda subscriber, pattern: held.wait(LONG)  # noqa: E731
    with Pub(options, authorize=authorize, authorize_through_switches=True) as pub, Socket() as by_hand:
        by_hand.dial(pub.listen("inproc://added-promise").address)
        for kind, pattern in ((b"\x01", "a"), (b"\x08", "")):
            say(by_hand, kind, pattern, pack_id(5))
        wait_until(lambda: bool(held.linkcount()))
        pipe = only_pipe(pub)
        assert pub.subscribe_peer(RemoteSub(pipe, pipe.path + pack_id(5)), "a") and pub.subscriptions == 1
        # It is silent from now on: it has died.
        wait_until(lambda: not pub.subscriptions)
        held.set()


def test_what_the_program_adds_over_a_limit_is_still_to_be_decided() -> None:
    held = Event()
    options = {"protocol.pubsub.max_total_patterns": 1}

    def authorize(subscriber: RemoteSub, pattern: str) -> bool | str:
        return pattern == "a" or (held.wait(LONG) and "decided")

    with Pub(options, authorize=authorize) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        waiting = gevent.spawn(reason_for, sub, "b")
        wait_until(lambda: bool(held.linkcount()))
        sub.subscribe("a", LONG)
        pipe = only_pipe(pub)
        with pytest.raises(SubscriptionRefused, match="too many subscriptions"):
            pub.subscribe_peer(RemoteSub(pipe, pipe.path), "b")
        held.set()
        assert waiting.get(timeout=LONG) == "decided"


def test_what_the_program_adds_has_the_limits_of_others() -> None:
    with Pub({"protocol.pubsub.max_patterns": 1}) as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a", LONG)
        (remote,) = subscribers_of(pub)
        with pytest.raises(SubscriptionRefused, match="at most 1 pattern"):
            pub.subscribe_peer(remote, "b")
        assert pub.subscribe_peer(remote, "a") and pub.subscriptions == 1


def test_a_pub_without_authorize_revokes_as_well() -> None:
    with Pub() as pub, Sub() as sub:
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a", LONG)
        (remote,) = subscribers_of(pub)
        assert pub.revoke(remote, "a") and pub.publish("a", b"") == 0
        wait_until(lambda: [one.refusal("a") for one in sub._upstreams.values()] == ["revoked"])


# Those that are refused too often


def test_a_peer_that_is_refused_too_often_is_cut() -> None:
    options = {"protocol.pubsub.max_refused": 5}
    with Pub(options, authorize=only_public) as pub, Socket() as by_hand, Sub() as honest:
        address = pub.listen("tcp://127.0.0.1:0").address
        honest.dial(address)
        honest.subscribe("public.a", LONG)
        by_hand.dial(address)
        for _ in range(3):
            # What is accepted in between begins the count again.
            for number in range(4):
                say(by_hand, b"\x01", f"private.{number}")
            say(by_hand, b"\x01", "public.a")
            while hear(by_hand) != b"\x02public.a":
                pass
            say(by_hand, b"\x00", "public.a")
        pipe = only_pipe(by_hand)
        for number in range(5):
            say(by_hand, b"\x01", f"private.{number}")
        wait_until(lambda: pipe.closed and len(pub.pipes) == 1)
        assert pub.publish("public.a", b"") == 1


def test_one_behind_a_switch_that_is_refused_too_often_is_silenced_for_a_while() -> None:
    options = {"protocol.pubsub.max_refused": 5, "protocol.pubsub.expiry": 0.3}
    with switched() as (pubs, subs), Socket() as by_hand, Sub() as honest:
        with Pub(options, authorize=only_public, authorize_through_switches=True) as pub:
            pub.dial(pubs)
            by_hand.dial(subs)
            honest.dial(subs)
            for number in range(5):
                say(by_hand, b"\x01", f"private.{number}")
            wait_until(lambda: pub.counters.drops == {"refused subscription": 5})
            say(by_hand, b"\x01", "public.b")
            wait_until(lambda: pub.counters.drops.get("silenced") == 1)
            honest.subscribe("public.a", LONG)
            assert pub.publish("public.a", b"") == 1

            def heard() -> bool:
                say(by_hand, b"\x01", "public.b")
                return pub.reach("public.b") == 1

            wait_until(heard)
            assert not pub._silenced


@contextmanager
def many_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pub, Callable[[str, int], None]]]:
    """A Pub that remembers two of those that it refuses; and a function by which one behind its pipe subscribes.

    That returns when the Pub has answered, or dropped the message.
    """
    monkeypatch.setattr(rights_module, "_MAX_SOURCES", 2)
    options = {"protocol.pubsub.max_refused": 2}
    with Pub(options, authorize=only_public, authorize_through_switches=True) as pub, Socket() as by_hand:
        by_hand.dial(pub.listen(f"inproc://{name}").address)

        def subscribe(pattern: str, number: int) -> None:
            before = pub.subscriptions + sum(pub.counters.drops.values())
            say(by_hand, b"\x01", pattern, pack_id(number))
            wait_until(lambda: pub.subscriptions + sum(pub.counters.drops.values()) > before)

        yield pub, subscribe


def test_refusals_are_counted_for_the_last_ones_behind_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    with many_behind("refused", monkeypatch) as (pub, subscribe):
        for number in (1, 2, 3, 1, 3):
            subscribe("private", number)
        # The first one's first refusal is forgotten, the third one's is not.
        for number in (1, 3):
            subscribe("public.a", number)
        assert pub.subscriptions == 1
        assert pub.counters.drops == {"refused subscription": 5, "silenced": 1}


def test_the_last_ones_behind_a_pipe_that_were_refused_too_often_are_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    with many_behind("silenced", monkeypatch) as (pub, subscribe):
        for number in (1, 1, 2, 2, 3, 3):
            subscribe("private", number)
        for number in (1, 2, 3):
            subscribe("public.a", number)
        assert pub.subscriptions == 1
        assert pub.counters.drops == {"refused subscription": 6, "silenced": 2}


@pytest.mark.parametrize("through", [False, True])
def test_one_that_subscribes_to_a_topic_in_too_many_ways_is_removed(through: bool) -> None:
    topic = "public." + ".".join("abcdefghij")
    patterns = [
        ".".join(["public", *("*" if number >> place & 1 else token for place, token in enumerate("abcdefghij"))])
        for number in range(1024)
    ]
    with switched() as (pubs, subs), Socket({"socket.no_recv": True}) as by_hand, Sub() as honest:
        with Pub(authorize=only_public, authorize_through_switches=through) as pub:
            address = pub.listen("tcp://127.0.0.1:0").address
            pub.dial(pubs)
            by_hand.dial(subs if through else address)
            for pattern in [*patterns, *(f"{pattern}.x" for pattern in patterns)]:
                say(by_hand, b"\x01", pattern)
            wait_until(lambda: pub.subscriptions == 2048, LONG)
            honest.dial(subs if through else address)
            honest.subscribe("public.>", LONG)
            pub.publish(topic + ".x", b"1")
            assert honest.recv(LONG) == (topic + ".x", b"1")
            wait_until(lambda: pub.subscriptions == 1 and not pub._subscribers._leaving)
            assert len(pub._subscribers._index) == 1
            if through:
                say(by_hand, b"\x01", "public.again")
                wait_until(lambda: pub.counters.drops.get("silenced") == 1)
            else:
                wait_until(lambda: not by_hand.pipes or len(pub.pipes) == 2)
            assert pub.publish(topic, b"2") == 1
            assert honest.recv(LONG) == (topic, b"2")


def test_publications_go_on_while_one_that_was_removed_has_not_gone_yet() -> None:
    # All in one turn of the loop: most of its patterns are in the index still, and its pipe is open.
    letters = "abcdefghijk"
    with Socket({"socket.no_recv": True}) as by_hand, Pub(authorize=only_public) as pub:
        by_hand.dial(pub.listen("tcp://127.0.0.1:0").address)
        for number in range(1 << len(letters)):
            tokens = ("*" if number >> place & 1 else token for place, token in enumerate(letters))
            say(by_hand, b"\x01", ".".join(["public", *tokens]))
        wait_until(lambda: pub.subscriptions == 1 << len(letters), LONG)
        for last in "klm":
            pub.publish("public." + ".".join(letters[:-1]) + "." + last, b"")
        assert pub.subscriptions == 0 and pub.pipes
        wait_until(lambda: not pub._subscribers._leaving)
        assert len(pub._subscribers._index) == 0


def test_one_that_has_gone_and_comes_again_has_only_the_rights_that_it_gets_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscribers_module, "_PORTION", 1)
    with (
        Pub({"protocol.pubsub.expiry": 0.05}, authorize=only_public, authorize_through_switches=True) as pub,
        Socket() as by_hand,
    ):
        by_hand.dial(pub.listen("tcp://127.0.0.1:0").address)
        for number in range(1000):
            say(by_hand, b"\x01", f"public.{number}", pack_id(5))
        pub.wait_subscribers("public.999", timeout=LONG)
        say(by_hand, b"\x08", "", pack_id(5))
        # It expires. Its patterns leave the index in many turns of the loop.
        with gevent.Timeout(LONG):
            while pub.subscriptions:
                gevent.sleep(0)
        pipe = only_pipe(pub)
        assert pub._subscribers._leaving
        assert pub.subscribe_peer(RemoteSub(pipe, pipe.path + pack_id(5)), "public.again")
        assert [pub.publish(f"public.{number}", b"") for number in range(1000)] == [0] * 1000
        assert pub.publish("public.again", b"") == 1


def test_a_promise_to_repeat_that_comes_before_the_decision_counts() -> None:
    decide = Event()

    def authorize(subscriber: RemoteSub, pattern: str) -> bool:
        return decide.wait(LONG)

    options = {"protocol.pubsub.expiry": 0.05}
    with (
        Pub(options, authorize=authorize, authorize_through_switches=True) as pub,
        Socket() as by_hand,
    ):
        by_hand.dial(pub.listen("inproc://early-promise").address)
        for kind, pattern in ((b"\x01", "a"), (b"\x08", "")):
            say(by_hand, kind, pattern, pack_id(5))
        gevent.idle()
        decide.set()
        pub.wait_subscribers("a", timeout=LONG)
        # It is silent from now on: it has died.
        wait_until(lambda: not pub.subscriptions)


def test_promises_to_repeat_are_remembered_for_some_while_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights_module, "_MAX_SOURCES", 2)
    held = Event()
    with (
        Pub(authorize=lambda subscriber, pattern: held.wait(LONG), authorize_through_switches=True) as pub,
        Socket() as by_hand,
    ):
        by_hand.dial(pub.listen("inproc://promises").address)
        say(by_hand, b"\x01", "a", pack_id(1))
        for number in range(1, 6):
            say(by_hand, b"\x08", "", pack_id(number))
        wait_until(lambda: only_pipe(pub).messages_received == 6)
        rights = pub._gate._rights
        assert rights is not None
        pipe = only_pipe(pub)
        assert rights._pipes[pipe].repeating == {pipe.path + pack_id(1), pipe.path + pack_id(2)}
        held.set()
        wait_until(lambda: not rights._pipes)
