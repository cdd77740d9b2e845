"""What comes in little pieces is read and delivered by the loop, while the pipe's reader sleeps on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import greenlet
import pytest
from gevent import socket as gsocket

from gmultisocket import Pipe, Socket, Switch
from gmultisocket.core.pipes.bytespipe import LITTLE, BytesPipe
from gmultisocket.core.pipes.packetpipe import PacketPipe
from gmultisocket.errors import Closed
from gmultisocket.protocol import Pub, Pull, Push, Sub
from gmultisocket.testing import wait_until
from gmultisocket.wire import INTERNAL, TO_ONE
from tests.addresses import plain_connection
from tests.core.streams import frame
from tests.peers import only_pipe

OFFERING = ("tcp", "ipc", "ws")


@pytest.fixture
def served(stream_address: str) -> Iterator[tuple[Socket, gsocket.socket]]:
    """A listening socket that has read from a plain peer."""
    with Socket() as server:
        with plain_connection(server.listen(stream_address).address) as peer:
            peer.sendall(frame(b"first"))
            assert server.recv(timeout=5) == b"first"
            yield server, peer
        server.close(linger=0)


def reader_of(pipe: Pipe) -> greenlet.greenlet:
    assert isinstance(pipe, BytesPipe) and pipe._reader is not None
    return pipe._reader


@contextmanager
def switches_to(target: greenlet.greenlet) -> Iterator[list[str]]:
    """Record how control is given to a greenlet."""
    seen: list[str] = []

    def trace(event: str, args: Any) -> None:
        if args[1] is target:
            seen.append(event)

    before = greenlet.settrace(trace)
    try:
        yield seen
    finally:
        greenlet.settrace(before)


@pytest.mark.parametrize("transport", OFFERING)
def test_little_messages_do_not_wake_the_reader_and_large_ones_do(transport: str, address: str) -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen(address).address)
        for number in range(3):
            client.send(b"%d" % number)
            server.recv(timeout=5)
        with switches_to(reader_of(only_pipe(server))) as seen:
            for number in range(20):
                client.send(b"little %d" % number)
                assert server.recv(timeout=5) == b"little %d" % number
            assert seen == []
            client.send(bytes(100_000))
            assert server.recv(timeout=5) == bytes(100_000)
            assert seen
        client.send(b"little again")
        assert server.recv(timeout=5) == b"little again"


def test_what_the_queue_has_no_room_for_comes_later_in_order(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    server.set_option("socket.recv_queue_size", 4)
    contents = [b"%d" % number for number in range(40)]
    for start in range(0, 40, 10):
        peer.sendall(b"".join(map(frame, contents[start : start + 10])))
        gevent.sleep(0)
    assert [server.recv(timeout=5) for _ in contents] == contents
    peer.sendall(frame(b"behind"))
    assert server.recv(timeout=5) == b"behind"


def test_good_messages_before_a_bad_one_are_delivered(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    pipe = only_pipe(server)
    peer.sendall(frame(b"good") + b"\x00\x00\x00\x00\xff\xff\xff\xff")
    assert server.recv(timeout=5) == b"good"
    wait_until(lambda: not server.pipes, timeout=5)
    assert str(pipe.reason) == "bad message: its ttl is 0"


def test_the_end_behind_a_little_is_seen(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    pipe = only_pipe(server)
    peer.sendall(frame(b"last"))
    peer.shutdown(gsocket.SHUT_WR)
    assert server.recv(timeout=5) == b"last"
    wait_until(lambda: not server.pipes, timeout=5)
    assert pipe.reason == "the peer closed the connection"


def test_a_goodbye_behind_a_little_is_seen(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    pipe = only_pipe(server)
    peer.sendall(frame(b"last") + frame(b"\0", INTERNAL | TO_ONE) + frame(b"behind"))
    assert server.recv(timeout=5) == b"last"
    wait_until(lambda: not server.pipes, timeout=5)
    assert pipe.reason == "the peer said goodbye" and server.queued == 0


def test_a_large_content_whose_beginning_came_alone_is_whole(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    whole = frame(bytes(range(256)) * 400)
    for size in (3, 8, 9, 20, LITTLE, LITTLE + 1):
        peer.sendall(whole[:size])
        gevent.sleep(0.001)
        peer.sendall(whole[size:])
        assert server.recv(timeout=5) == bytes(range(256)) * 400


def test_who_is_woken_inside_the_read_may_close_the_pipe(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    pipe = only_pipe(server)
    reader = reader_of(pipe)

    def close_at_first() -> bytes:
        content = server.recv(timeout=5)
        pipe.close()
        return content

    receiver = gevent.spawn(close_at_first)
    gevent.sleep(0)
    peer.sendall(frame(b"one") + frame(b"two")[:5])
    assert receiver.get(timeout=5) == b"one"
    wait_until(lambda: not server.pipes and reader.dead, timeout=5)
    assert pipe.reason == "closed by the user"


def test_who_is_woken_inside_the_read_may_close_the_socket(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served

    def close_at_first() -> bytes:
        content = server.recv(timeout=5)
        server.close(linger=0)
        return content

    receiver = gevent.spawn(close_at_first)
    gevent.sleep(0)
    peer.sendall(frame(b"one") + frame(b"two"))
    assert receiver.get(timeout=5) == b"one"
    # It had arrived.
    assert server.recv(timeout=0) == b"two"
    with pytest.raises(Closed):
        server.recv(timeout=0)


def test_a_rate_that_is_set_while_the_reader_sleeps_holds(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    pipe = only_pipe(server)
    with switches_to(reader_of(pipe)) as seen:
        pipe.options.set("connector.pipe.max_message_rate", 1000)
        for number in range(10):
            peer.sendall(frame(b"%d" % number))
            assert server.recv(timeout=5) == b"%d" % number
    assert len(seen) >= 10


def test_a_smaller_and_then_a_larger_read_buffer_holds_at_once(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    pipe = only_pipe(server)
    assert isinstance(pipe, BytesPipe)
    sizes: list[int] = []
    connection: Any = pipe._connection
    receive = connection._raw_recv

    def counted(size: int) -> bytes:
        sizes.append(size)
        return bytes(receive(size))

    connection._raw_recv = counted
    pipe.options.set("connector.pipe.read_buffer", 64)
    # The first one ends the wait that had begun.
    for content in (bytes(5000), bytes(200), bytes(200)):
        peer.sendall(frame(content))
        assert server.recv(timeout=5) == content
    assert sizes[-1] == 64
    pipe.options.set("connector.pipe.read_buffer", 0)
    # Reads of 64 bytes would always end where one of these frames ends.
    for _ in range(2):
        peer.sendall(frame(bytes(24)) * 10)
        assert [server.recv(timeout=5) for _ in range(10)] == [bytes(24)] * 10
    assert sizes[-1] > LITTLE


def test_the_last_bytes_of_a_packet_of_many_frames_are_decoded_by_the_reader() -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("ws.rw://127.0.0.1:0/").address)
        server.wait_pipes(timeout=5)
        client.send(b"first")
        assert server.recv(timeout=5) == b"first"
        pipe = only_pipe(client)
        assert isinstance(pipe, PacketPipe)
        frames = frame(b"\2", INTERNAL | TO_ONE) * 300 + frame(b"behind")
        packet = pipe._codec.wrap(frames)
        pipe._connection.write_all(packet[:-500])
        gevent.sleep(0.01)
        pipe._connection.write_all(packet[-500:])
        assert server.recv(timeout=5) == b"behind"


def test_a_handler_of_the_log_may_wait_when_a_hook_fails_in_the_hub() -> None:
    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gevent.sleep(0.001)
            told.append(record.getMessage())

    def hook(*args: object) -> bool:
        raise ValueError("of the hook")

    told: list[str] = []
    logger = logging.getLogger("gmultisocket.protocol")
    handler = Waits()
    logger.addHandler(handler)
    try:
        with Pub() as pub, Sub() as sub:
            pub.hold_acknowledgements(hook)
            sub.dial(pub.listen("tcp://127.0.0.1:0").address)
            sub.subscribe("a", timeout=5)
            sub.subscribe("b", timeout=5)
            wait_until(lambda: "a hook for acknowledgements failed" in told, timeout=5)
    finally:
        logger.removeHandler(handler)


def test_a_switch_that_starts_while_the_reader_sleeps_passes_on(new_address: Callable[[], str]) -> None:
    with Push() as push, Pull() as pull, Socket() as front, Socket() as back:
        push.dial(front.listen(new_address()).address)
        pull.dial(back.listen(new_address()).address)
        front.wait_pipes(timeout=5)
        back.wait_pipes(timeout=5)
        push.send(b"before")
        assert front.recv(timeout=5) == b"before"
        with Switch(front, back):
            for number in range(5):
                push.send(b"%d" % number)
                assert pull.recv(timeout=5) == b"%d" % number
