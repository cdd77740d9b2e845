"""Two that talk to each other alone: who is turned away, and when the next one is let in."""

from __future__ import annotations

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import PipeRefused, Timeout
from gmultisocket.protocol import Pair
from gmultisocket.testing import wait_until
from tests.protocol.net import Net

LONG = 20.0
#: Some transports tell a dialer that it is refused, others close: asynchronously it comes back either way.
PERSISTENT = {"connector.dialer.dial_async": True, "connector.dialer.min_reconnect_time": 0.001}
QUICK = {**PERSISTENT, "connector.dialer.max_reconnect_time": 0.02}


def test_both_sides_talk(net: Net) -> None:
    with Pair() as one, Pair() as other:
        net.connect(one, other)
        for number in range(100):
            one.send(b"%d" % number, LONG)
            other.send(b"-%d" % number, LONG)
        assert [other.recv(LONG) for _ in range(100)] == [b"%d" % number for number in range(100)]
        assert [one.recv(LONG) for _ in range(100)] == [b"-%d" % number for number in range(100)]


def test_a_pair_speaks_the_wire_as_written_by_hand(net: Net) -> None:
    with Pair() as pair, Socket() as by_hand:
        net.connect(pair, by_hand)
        pair.send(b"hello", LONG)
        message = by_hand.recv_msg(LONG)
        assert (message.flags, message.content) == (0, b"hello")
        by_hand.send(b"and hello", LONG)
        assert pair.recv(LONG) == b"and hello"


def test_a_second_peer_is_refused_and_let_in_once_the_first_has_left(direct: Net) -> None:
    with Pair() as pair, Pair(QUICK) as second:
        with Pair() as first:
            direct.connect(pair, first)
            (listener,) = pair.socket.listeners
            dialer = second.dial(listener.address)
            wait_until(lambda: dialer.attempts > 3, LONG, "it is turned away, and comes back")
            assert listener.refused >= 3
            assert len(pair.pipes) == 1
            first.send(b"still the first", LONG)
            assert pair.recv(LONG) == b"still the first"
            assert pair.counters.messages_received == 1
            before = set(pair.pipes)
        wait_until(lambda: pair.pipes and not before & set(pair.pipes), LONG)
        pair.send(b"welcome", LONG)
        assert second.recv(LONG) == b"welcome"


def test_a_refused_dialer_comes_back_ever_more_slowly(direct: Net) -> None:
    with Pair() as pair, Pair() as first, Pair(PERSISTENT) as second:
        direct.connect(pair, first)
        dialer = second.dial(next(iter(pair.socket.listeners)).address)
        wait_until(lambda: dialer.attempts >= 10, LONG)
        assert dialer._pause > 0.001 * 1.1**8


def test_a_pair_that_has_its_peer_dials_nobody(direct: Net) -> None:
    with Pair() as pair, Pair() as first, Pair() as second:
        direct.connect(pair, first)
        with pytest.raises(PipeRefused):
            pair.dial(second.listen(direct.address()).address)
        assert not second.pipes


def test_what_could_not_leave_waits_for_the_next_peer(direct: Net) -> None:
    with Pair() as pair:
        sending = gevent.spawn(pair.send, b"to whoever comes", LONG)
        gevent.sleep(0)
        with Pair() as other:
            direct.connect(pair, other)
            assert other.recv(LONG) == b"to whoever comes"
        sending.get(timeout=LONG)
        wait_until(lambda: not pair.pipes)
        with pytest.raises(Timeout):
            pair.send(b"", 0.01)
