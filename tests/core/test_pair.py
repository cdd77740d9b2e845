"""Pairs: two sockets that are each other's only peer."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest

from gmultisocket import Socket, options, pair
from gmultisocket.errors import Closed, NotSupported, Timeout
from gmultisocket.testing import wait_until
from tests.oracle import descriptors


def test_both_ends_send_and_receive() -> None:
    one, other = pair()
    with one, other:
        for sender, receiver in ((one, other), (other, one)):
            sending = gevent.spawn(sender.send, b"hello")
            assert receiver.recv(timeout=5) == b"hello"
            sending.get(timeout=5)


def test_a_pair_needs_no_descriptor() -> None:
    before = descriptors()
    one, other = pair()
    assert descriptors() == before
    one.close()
    other.close()


def test_a_send_ends_when_the_message_is_received() -> None:
    one, other = pair()
    with one, other:
        sending = gevent.spawn(one.send, b"x")
        gevent.sleep(0.001)
        assert not sending.ready() and other.queued == 0
        assert other.recv(timeout=5) == b"x"
        sending.get(timeout=5)


@pytest.mark.parametrize("give_up", ["times out", "is killed", "polls"])
def test_a_receiver_that_gave_up_receives_nothing_later(give_up: str) -> None:
    """A send must not go through because somebody waited once."""
    one, other = pair()
    with one, other:
        if give_up == "is killed":
            receiver = gevent.spawn(other.recv)
            gevent.sleep(0)
            receiver.kill()
        else:
            with pytest.raises(Timeout):
                other.recv(timeout=0.001 if give_up == "times out" else 0)
        for timeout in (0, 0.001):
            with pytest.raises(Timeout):
                one.send(b"nobody waits", timeout=timeout)
            with pytest.raises(Timeout):
                one.send_to(next(iter(one.pipes.values())).path, b"nobody waits", timeout=timeout)
            with pytest.raises(Timeout):
                one.send_all(b"nobody waits", timeout=timeout)
        sending = gevent.spawn(one.send, b"x")
        assert other.recv(timeout=5) == b"x"
        sending.get(timeout=5)
        assert one.counters.messages_sent == 1


def test_a_poll_finds_a_sender_that_waits() -> None:
    one, other = pair()
    with one, other:
        sending = gevent.spawn(one.send, b"x")
        gevent.sleep(0)
        assert other.recv(timeout=0) == b"x"
        sending.get(timeout=5)


def test_a_sender_that_gave_up_has_sent_nothing() -> None:
    one, other = pair()
    with one, other:
        with pytest.raises(Timeout):
            one.send(b"late", timeout=0.001)
        sending = gevent.spawn(one.send, b"x")
        gevent.sleep(0)
        sending.kill()
        with pytest.raises(Timeout):
            other.recv(timeout=0.001)
        assert one.counters.messages_sent == 0 and one.close() == 0


def test_many_senders_and_receivers_meet_in_order() -> None:
    one, other = pair()
    with one, other:
        senders = [gevent.spawn(one.send, b"%d" % number) for number in range(50)]
        gevent.sleep(0)
        got: list[bytes] = []
        receivers = [gevent.spawn(lambda: got.append(other.recv(timeout=5))) for _ in range(50)]
        gevent.joinall([*senders, *receivers], timeout=5, raise_error=True)
        assert got == [b"%d" % number for number in range(50)]


@pytest.mark.parametrize(
    "names", [("socket.recv_queue_size", "socket.send_queue_size"), ("Socket.RecvQueueSize", "Socket.SendQueueSize")]
)
def test_a_pair_may_have_queues_all_the_same(names: tuple[str, str]) -> None:
    one, other = pair({names[0]: 2, names[1]: 3})
    with one, other:
        for number in range(5):
            one.send(b"%d" % number, timeout=0)
        with pytest.raises(Timeout):
            one.send(b"too many", timeout=0)
        assert [other.recv(timeout=5) for _ in range(5)] == [b"%d" % number for number in range(5)]
        assert one.get_option(options.socket.send_queue_size) == 3


def test_a_pair_neither_dials_nor_listens() -> None:
    one, other = pair()
    with one, other:
        for call in (lambda: one.dial("inproc://x"), lambda: other.listen("inproc://x")):
            with pytest.raises(NotSupported, match="pair"):
                call()
        assert len(one.pipes) == len(other.pipes) == 1


def test_the_other_end_hears_of_a_close_and_receives_what_had_arrived() -> None:
    one, other = pair({"socket.recv_queue_size": 10})
    for number in range(3):
        one.send(b"%d" % number)
    waiting = gevent.spawn(lambda: [message.content for message in other])
    one.close()
    wait_until(lambda: not other.pipes)
    other.close()
    assert waiting.get(timeout=5) == [b"0", b"1", b"2"]


def test_closing_one_end_frees_the_senders_of_both() -> None:
    def send(sock: Socket) -> Callable[[], object]:
        return lambda: sock.send(b"x")

    one, other = pair({"socket.fail_no_peers": True})
    senders = [gevent.spawn(send(one)), gevent.spawn(send(other))]
    gevent.sleep(0)
    one.close(linger=0)
    with pytest.raises(Closed):
        senders[0].get(timeout=5)
    wait_until(lambda: senders[1].ready())
    assert senders[1].exception is not None
    other.close()
    with pytest.raises(type(senders[1].exception)):
        senders[1].get()


# When one end closes


@pytest.mark.parametrize("buffered", [False, True])
def test_when_one_end_closes_the_other_receives_what_has_arrived_and_then_closed(buffered: bool) -> None:
    one, other = pair({"socket.recv_queue_size": 8, "socket.send_queue_size": 8} if buffered else None)
    with one, other:
        if buffered:
            other.send(b"arrived")
        receiver = gevent.spawn(lambda: [message.content for message in one])
        other.close()
        assert receiver.get(timeout=5) == [b"arrived"] * buffered
        with pytest.raises(Closed, match="the other end of the pair was closed"):
            one.recv(timeout=5)


def test_when_one_end_closes_greenlets_that_wait_at_the_other_are_woken() -> None:
    one, other = pair()
    with one, other:
        waiting = [
            gevent.spawn(one.recv),
            gevent.spawn(one.recv_msg),
            gevent.spawn(one.wait_pipes, 2),
        ]
        gevent.sleep(0)
        other.close()
        for greenlet in waiting:
            with pytest.raises(Closed):
                greenlet.get(timeout=5)
    one, other = pair()
    with one, other:
        waiting = [gevent.spawn(one.send, b"nobody takes this") for _ in range(3)]
        gevent.sleep(0)
        other.close()
        for greenlet in waiting:
            with pytest.raises(Closed, match="the other end of the pair was closed"):
                greenlet.get(timeout=5)
        with pytest.raises(Closed):
            one.send_all(b"nobody")


def test_a_pipe_of_a_pair_that_is_closed_closes_both_ends_for_their_users() -> None:
    one, other = pair()
    with one, other:
        (pipe,) = one.pipes
        assert one.close_pipe(pipe)
        for sock in (one, other):
            with pytest.raises(Closed):
                sock.recv(timeout=5)
            assert not sock.closed
