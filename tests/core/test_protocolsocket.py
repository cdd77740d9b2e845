"""What a protocol sees through its ProtocolSocket, and when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import gevent
import pytest

from gmultisocket import Message, Pipe, Socket
from gmultisocket.errors import Closed, MessageTooLong, Timeout
from gmultisocket.testing import wait_until

LONG = 10.0


@pytest.fixture(params=["inproc", "tcp"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Socket, Socket]]:
    """Two sockets of which the second has dialed the first."""
    address = {"inproc": "inproc://core", "tcp": "tcp://127.0.0.1:0"}[request.param]
    with Socket() as one, Socket() as other:
        other.dial(one.listen(address).address)
        one.wait_pipes(1, LONG)
        yield one, other


# Messages


def test_what_the_callback_takes_never_gets_into_the_queue(ends: tuple[Socket, Socket]) -> None:
    one, other = ends
    seen: list[bytes] = []

    def callback(message: Message) -> bool:
        seen.append(message.content)
        return message.content.startswith(b"mine")

    one._for_protocol().on_message(callback)
    for content in (b"mine 1", b"yours 1", b"mine 2", b"yours 2"):
        other.send(content)
    assert [one.recv(LONG) for _ in range(2)] == [b"yours 1", b"yours 2"]
    assert seen == [b"mine 1", b"yours 1", b"mine 2", b"yours 2"]
    assert one.queued == 0


@pytest.mark.parametrize("address", ["inproc://core", "tcp://127.0.0.1:0"])
def test_what_the_callback_takes_needs_no_room_in_the_queue(address: str) -> None:
    taken: list[bytes] = []

    def callback(message: Message) -> bool:
        if message.content != b"mine":
            return False
        taken.append(message.content)
        return True

    with Socket({"socket.recv_queue_size": 1}) as one, Socket() as other:
        one._for_protocol().on_message(callback)
        other.dial(one.listen(address).address)
        other.send(b"yours")
        for _ in range(1000):
            other.send(b"mine", LONG)
        wait_until(lambda: len(taken) == 1000)
        assert one.queued == 1 and one.recv(LONG) == b"yours"


@pytest.mark.parametrize("address", ["inproc://core", "tcp://127.0.0.1:0"])
def test_what_the_callback_takes_needs_no_queue_at_all(address: str) -> None:
    taken: list[bytes] = []
    unbuffered = {"socket.send_queue_size": 0, "socket.recv_queue_size": 0}
    with Socket(unbuffered) as one, Socket(unbuffered) as other:
        one._for_protocol().on_message(lambda message: not taken.append(message.content))
        other.dial(one.listen(address).address)
        for number in range(100):
            other.send(b"%d" % number, LONG)
        wait_until(lambda: len(taken) == 100)
        assert one.queued == 0


def test_all_that_came_by_a_pipe_is_shown_before_the_pipe_is_seen_to_close() -> None:
    with Socket() as one:
        seen: list[str] = []
        one._for_protocol().on_message(lambda message: not seen.append(message.content.decode()))
        one._for_protocol().on_pipe(lambda kind, pipe: seen.append(kind))
        address = one.listen("tcp://127.0.0.1:0").address
        for _ in range(20):
            with Socket() as other:
                other.dial(address)
                for number in range(3):
                    other.send(b"%d" % number)
            wait_until(lambda: len(seen) == 5)
            assert seen == ["add", "0", "1", "2", "remove"]
            seen.clear()


# Pipes


def test_the_callback_hears_of_a_pipe_at_once_and_before_others(ends: tuple[Socket, Socket]) -> None:
    one, _ = ends
    heard: list[str] = []
    one.on_pipe(lambda event: heard.append(f"others: {event.kind}"))

    def callback(kind: Literal["add", "remove"], pipe: Pipe) -> None:
        heard.append(f"{kind} {pipe.closed}")

    one._for_protocol().on_pipe(callback)
    one.close_pipe(next(iter(one.pipes)))
    assert heard == ["remove True"]
    wait_until(lambda: heard[1:2] == ["others: remove"])


# Sending


def test_next_pipe_is_the_pipe_that_takes_the_message(ends: tuple[Socket, Socket]) -> None:
    one, other = ends
    core = one._for_protocol()
    pipe = core.next_pipe(LONG)
    assert pipe is not None and [pipe] == list(one.pipes.values())
    core.put(pipe, Message(content=core.check_content(b"content")))
    assert other.recv(LONG) == b"content"
    with pytest.raises(MessageTooLong):
        core.check_content(bytes(1 << 20))
    with Socket() as alone, pytest.raises(Timeout):
        alone._for_protocol().next_pipe(0)


def test_a_message_that_loses_its_pipe_is_seen_to_move_or_is_forgotten() -> None:
    moves: list[tuple[bytes, Pipe | None]] = []

    def moved(message: Message, pipe: Pipe | None) -> bool:
        moves.append((message.content, pipe))
        return message.content != b"unwanted"

    with Socket() as one, Socket({"socket.recv_queue_size": 1}) as stuck, Socket() as other:
        one._for_protocol().on_requeue(moved)
        address = one.listen("inproc://moves").address
        stuck.dial(address)
        one.wait_pipes(1, LONG)
        for content in (b"arrives", b"wanted", b"unwanted"):
            one.send(content)
        (pipe,) = one.pipes.values()
        assert pipe.queued == 2
        pipe.close()
        assert moves == [(b"wanted", None), (b"unwanted", None)]
        stuck.close()
        other.dial(address)
        assert other.recv(LONG) == b"wanted"
        assert moves[2:] == [(b"wanted", next(iter(one.pipes.values())))]


def test_what_is_sent_again_waits_for_a_pipe_and_goes_first() -> None:
    with Socket() as one, Socket() as other:
        one._for_protocol().requeue(b"again")
        waiting = gevent.spawn(one.send, b"after it", LONG)
        gevent.sleep(0)
        other.dial(one.listen("inproc://again").address)
        assert [other.recv(LONG), other.recv(LONG)] == [b"again", b"after it"]
        waiting.get(timeout=LONG)


# Receiving


def test_a_socket_that_has_stopped_receiving_still_sends(ends: tuple[Socket, Socket]) -> None:
    one, other = ends
    waiting = gevent.spawn(pytest.raises, Closed, one.recv)
    gevent.sleep(0)
    one._for_protocol().stop_receiving("enough")
    waiting.get(timeout=LONG)
    other.send(b"too late")
    wait_until(lambda: one.counters.drops == {"closed": 1})
    one.send(b"still here")
    assert other.recv(LONG) == b"still here"


def test_what_nobody_had_taken_is_counted_when_receiving_stops(ends: tuple[Socket, Socket]) -> None:
    one, other = ends
    other.send(b"unread")
    wait_until(lambda: one.queued == 1)
    one._for_protocol().stop_receiving("enough")
    assert one.queued == 0
    assert one.counters.drops == {"closed": 1}


def test_drops_are_counted_on_the_pipe_while_it_is_open_and_on_the_socket(ends: tuple[Socket, Socket]) -> None:
    one, _ = ends
    (pipe,) = one.pipes.values()
    one._for_protocol().count_drop("garbage", pipe.id)
    assert pipe.counters.drops == {"garbage": 1}
    one.close_pipe(pipe.id)
    one._for_protocol().count_drop("garbage", pipe.id)
    assert one.counters.drops == {"garbage": 2}


# One pipe, or a group of them


def test_room_in_one_pipe_can_be_waited_for_whatever_the_overflow_policy_says() -> None:
    options = {"socket.send_queue_size": 1, "socket.send_overflow": "drop_newest"}
    with Socket(options) as one, Socket({"socket.recv_queue_size": 1}) as other:
        core = one._for_protocol()
        other.dial(one.listen("inproc://room").address)
        (pipe,) = one.pipes.values()
        sent = 0
        while core.wait_writable(pipe, 0):
            core.put(pipe, Message(content=b"%d" % sent))
            sent += 1
        assert sent == 2
        waiting = gevent.spawn(core.wait_writable, pipe, LONG)
        assert other.recv(LONG) == b"0"
        assert waiting.get(timeout=LONG)
        core.put(pipe, Message(content=b"2"))
        waiting = gevent.spawn(core.wait_writable, pipe, LONG)
        gevent.idle()
        pipe.close()
        assert waiting.get(timeout=LONG) is False
        assert [other.recv(LONG), one.counters.drops.get("overflow", 0)] == [b"1", 0]


def test_a_wait_for_room_ends_with_the_socket() -> None:
    with Socket({"socket.send_queue_size": 1}) as one, Socket({"socket.recv_queue_size": 1}) as other:
        core = one._for_protocol()
        other.dial(one.listen("inproc://closing").address)
        (pipe,) = one.pipes.values()
        while core.wait_writable(pipe, 0):
            core.put(pipe, Message(content=b"full"))
        waiting = gevent.spawn(core.wait_writable, pipe, LONG)
        gevent.idle()
        one.close(0)
        with pytest.raises(Closed):
            waiting.get(timeout=LONG)


def test_a_group_gets_what_is_sent_to_it_and_nobody_else_does() -> None:
    with Socket() as one, Socket() as first, Socket() as second:
        core = one._for_protocol()
        address = one.listen("tcp://127.0.0.1:0").address
        for peer in (first, second):
            peer.dial(address)
        one.wait_pipes(2, LONG)
        pipes = list(one.pipes.values())
        assert core.send_group([], b"for nobody") == 0
        assert core.send_group(pipes[:1], b"for the first") == 1
        assert core.send_group(pipes, b"for all") == 2
        received = sorted([[peer.recv(LONG) for _ in range(count)] for peer, count in ((first, 2), (second, 1))])
        assert received == [[b"for all"], [b"for the first", b"for all"]]
        with pytest.raises(MessageTooLong):
            core.send_group(pipes, bytes(core.max_content + 1))


def test_a_pipe_that_comes_while_send_group_lets_others_run_gets_nothing() -> None:
    with Socket({"socket.yield_messages": 1}) as one, Socket() as first, Socket() as second:
        core = one._for_protocol()
        address = one.listen("tcp://127.0.0.1:0").address
        first.dial(address)
        one.wait_pipes(1, LONG)
        (pipe,) = one.pipes.values()
        sending = gevent.spawn(lambda: [core.send_group([pipe], b"for the first") for _ in range(2000)])
        second.dial(address)
        one.wait_pipes(2, LONG)
        sending.kill()
        (other,) = {*one.pipes.values()} - {pipe}
        core.send_group([other], b"for the second")
        assert second.recv(LONG) == b"for the second"


def test_a_socket_is_drained_when_nothing_waits_to_be_received() -> None:
    with Socket({"socket.recv_queue_size": 1}) as one, Socket() as other:
        core = one._for_protocol()
        other.dial(one.listen("inproc://drained").address)
        assert core.drained
        for _ in range(3):
            other.send(b"content")
        for _ in range(3):
            assert not core.drained
            one.recv(LONG)
            gevent.idle()
        assert core.drained


@pytest.mark.parametrize("address", ["inproc://core", "tcp://127.0.0.1:0"])
def test_a_callback_that_wants_them_in_order_sees_nothing_behind_a_message_that_waits(address: str) -> None:
    seen: list[tuple[bytes, bool]] = []

    with Socket({"socket.recv_queue_size": 1}) as one, Socket({"socket.send_queue_size": 1}) as other:
        core = one._for_protocol()

        def callback(message: Message) -> bool:
            seen.append((message.content, core.has_room))
            if message.content == b"instead" and core.has_room:
                core.append(Message(content=b"in front"))
                core.append(Message(content=b"of it"))
                return True
            return message.content == b"mine"

        core.on_message(callback, in_order=True)
        other.dial(one.listen(address).address)
        contents = (b"yours 1", b"yours 2", b"mine", b"instead", b"yours 3")
        sender = gevent.spawn(lambda: [other.send(content, LONG) for content in contents])
        wait_until(lambda: len(seen) >= 2)
        gevent.idle()
        assert one.queued == 1 and {content for content, _ in seen} == {b"yours 1", b"yours 2"}
        got = [one.recv(LONG) for _ in range(5)]
        assert got == [b"yours 1", b"yours 2", b"in front", b"of it", b"yours 3"]
        # One that waits is shown again, until there is room; each of the others once.
        assert [*dict.fromkeys(content for content, _ in seen)] == [*contents]
        assert [content for content, room in seen if room and content != b"mine"] == [
            b"yours 1", b"yours 2", b"instead", b"yours 3",
        ]  # fmt: skip
        sender.join()
