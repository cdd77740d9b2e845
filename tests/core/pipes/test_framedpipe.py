"""Pipes over frames back to back: what is on the wire, and what a peer may do wrong."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import suppress

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Message, Socket
from gmultisocket.core.pipes.framedpipe import FramedPipe
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.wire import CONTROL, INTERNAL, RAW, TO_ALL, TO_DEST, TO_ONE, encode, pack_id
from tests.addresses import plain_connection
from tests.cases import every_case
from tests.core.streams import PartsStream, frame, read_exactly
from tests.peers import only_pipe

CLOSE, PING = b"\0", b"\1"


@pytest.fixture
def served(stream_address: str) -> Iterator[tuple[Socket, gsocket.socket]]:
    """A listening socket and a plain peer of it."""
    with Socket() as server:
        with plain_connection(server.listen(stream_address).address) as peer:
            server.wait_pipes(timeout=5)
            yield server, peer
        server.close(linger=0)


# Frames on the wire


def test_what_is_sent_is_on_the_wire_as_frames(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    path = only_pipe(server).path
    server.send(b"one")
    server.send_all(b"all")
    server.send_to(path + pack_id(5), b"dest")
    expected = [
        frame(b"one"),
        frame(b"all", TO_ALL),
        frame(b"dest", TO_DEST, destination=path + pack_id(5)),
    ]
    for each in expected:
        assert read_exactly(peer, len(each)) == each


def test_what_comes_as_frames_is_received_in_pieces_of_any_size(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    contents = [bytes([number]) * (number * 37 % 300) for number in range(50)]
    stream = b"".join(frame(content, source=pack_id(number + 1)) for number, content in enumerate(contents))
    rng = random.Random(7)
    while stream:
        size = rng.choice((1, 2, 3, 5, 8, 100, 1000))
        peer.sendall(stream[:size])
        stream = stream[size:]
        gevent.sleep(0)
    messages = [server.recv_msg(timeout=5) for _ in contents]
    assert [message.content for message in messages] == contents
    here = only_pipe(server).path
    assert [message.source for message in messages] == [here + pack_id(number + 1) for number in range(50)]


def test_a_message_is_the_same_frame_whenever_in_a_turn_it_is_sent_and_however_long_it_is() -> None:
    sizes = [0, 1, 100, 32767, 32768, 40_000, 0, 131072, 1]
    stream = FakeStream()
    with FakeTransport([stream]) as fake, Socket({"socket.send_ttl": 7}) as client:
        client.dial(fake.address)
        for size in sizes:
            client.send(bytes(size))
            client.send_all(bytes(size))
        gevent.sleep(0)
        expected = [frame(bytes(size), flags, ttl=7) for size in sizes for flags in (TO_ONE, TO_ALL)]
        assert bytes(stream.sent) == b"".join(expected)


def test_a_large_content_is_given_to_the_kernel_as_it_is() -> None:
    stream = PartsStream()
    with FakeTransport([stream]) as fake, Socket() as client:
        client.dial(fake.address)
        content = bytes(100_000)
        client.send(content)
        head, given = stream.parts
        assert given is content and len(head) == 8


def put_pieces(client: Socket, data: memoryview, size: int) -> int:
    """Send data to ``PEER`` by the only pipe."""
    return client._for_protocol().put_pieces(only_pipe(client), pack_id(5), PEER, data, size)


#: A path with one id, and the size of a piece that is sent without a copy.
PEER, PIECE = pack_id(9 << 8), 40_000


def test_pieces_of_large_data_are_given_to_the_kernel_in_one_call_and_as_they_are() -> None:
    stream = PartsStream()
    with FakeTransport([stream]) as fake, Socket() as client:
        client.dial(fake.address)
        data = random.Random(2).randbytes(3 * PIECE + 5)
        assert put_pieces(client, memoryview(data), PIECE) == 2 * PIECE
        assert all(type(part) is bytes or (type(part) is memoryview and part.obj is data) for part in stream.parts)
        assert len(stream.parts) == 4 and client.counters.messages_sent == 2
        assert put_pieces(client, memoryview(data)[2 * PIECE :], PIECE) == PIECE
        assert put_pieces(client, memoryview(data)[3 * PIECE :], PIECE) == 5
        # What may change is copied, and so are small pieces.
        assert put_pieces(client, memoryview(bytearray(data)), PIECE) == PIECE
        assert put_pieces(client, memoryview(data), 100) == 100
        gevent.sleep(0)
    pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
    expected = [*pieces, data[:PIECE], data[:100]]
    assert bytes(stream.sent) == b"".join(frame(piece, TO_DEST, 16, pack_id(5), PEER) for piece in expected)
    assert client.counters.messages_sent == 6


@pytest.mark.parametrize("taken", [0, 10, PIECE - 1, PIECE + 16, PIECE + 17, 3 * PIECE])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_pieces_that_the_kernel_does_not_take_are_queued_up_to_the_limit(limit: int, taken: int) -> None:
    stream = FakeStream(takes=[taken])
    with FakeTransport([stream]) as fake, Socket({"socket.send_queue_size": limit}) as client:
        client.dial(fake.address)
        data = memoryview(random.Random(3).randbytes(4 * PIECE))
        stream.block() if not taken else None
        sent = put_pieces(client, data, PIECE)
        pipe = only_pipe(client)
        whole, part = divmod(taken, PIECE + 16)
        assert pipe.queued - bool(part) <= limit and sent == min(2, whole + pipe.queued) * PIECE
        while sent < len(data):
            stream.unblock()
            wait_until(lambda: not pipe.full)
            sent += put_pieces(client, data[sent:], PIECE)
        stream.unblock()
        assert client.close() == 0
    pieces = [bytes(data[start : start + PIECE]) for start in range(0, sent, PIECE)]
    assert bytes(stream.sent) == b"".join(frame(piece, TO_DEST, 16, pack_id(5), PEER) for piece in pieces)
    assert client.counters.messages_sent == 4 and client.counters.bytes_sent == len(stream.sent)


def test_pieces_come_after_what_was_queued_and_before_what_follows() -> None:
    stream = FakeStream()
    with FakeTransport([stream]) as fake, Socket() as client:
        client.dial(fake.address)
        data = memoryview(bytes(2 * PIECE))
        for content in (b"first", b"second"):
            client.send(content)
        assert put_pieces(client, data, PIECE) == len(data)
        client.send(b"last")
        gevent.sleep(0)
    pieces = [frame(bytes(PIECE), TO_DEST, 16, pack_id(5), PEER)] * 2
    assert bytes(stream.sent) == b"".join([frame(b"first"), frame(b"second"), *pieces, frame(b"last")])


@pytest.mark.parametrize("limit", [2, 100])
@pytest.mark.parametrize("taken", [None, 0, 5, PIECE + 20])
def test_each_piece_that_a_connection_breaks_under_is_counted(taken: int | None, limit: int) -> None:
    stream = FakeStream(takes=[*([] if taken is None else [taken]), BrokenPipeError(32, "broken")])
    with FakeTransport([stream]) as fake, Socket({"socket.send_queue_size": limit}) as client:
        client.dial(fake.address, {"connector.dialer.reconnect": False})
        given = put_pieces(client, memoryview(bytes(4 * PIECE)), PIECE) // PIECE
        wait_until(lambda: not only_pipe(client).queued)
        stream.feed(b"")
        wait_until(lambda: not client.pipes)
        left = int(taken is not None and taken > PIECE)
        assert client.counters.messages_sent == left
        assert client.counters.drops == {"disconnect": given - left}


def test_a_message_that_goes_to_another_pipe_is_the_same_message() -> None:
    broken, good = FakeStream(takes=[0, BrokenPipeError(32, "broken")]), FakeStream()
    messages = [
        Message(TO_ONE | CONTROL, ttl=5, source=pack_id(7) + pack_id(9), content=b"small"),
        Message(TO_ONE, ttl=6, source=pack_id(8), content=bytes(100_000)),
        Message(TO_ONE, ttl=7, content=b""),
    ]
    with FakeTransport([broken, good]) as fake, Socket() as client:
        client.dial(fake.address, {"connector.dialer.reconnect": False})
        for message in messages:
            client.send_msg(message)
        client.dial(fake.address)
        broken.feed(b"")
        wait_until(lambda: len(client.pipes) == 1)
        assert client.close() == 0
    assert bytes(good.sent) == b"".join(map(encode, messages))
    assert client.counters.drops == {} and client.counters.messages_sent == 3


class AskedStream(FakeStream):
    """A stream that knows how much it was asked for at a time."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def recv(self, size: int) -> bytes:
        self.asked.append(size)
        return super().recv(size)


def test_the_kernel_is_asked_for_as_much_as_the_option_says_and_for_what_suits_without_it() -> None:
    streams = [AskedStream(), AskedStream()]
    with FakeTransport(streams) as fake, Socket() as client:
        dialers = [client.dial(fake.address, {"connector.pipe.read_buffer": size}) for size in (10, 0)]
        for stream in streams:
            stream.feed(frame(b"in small pieces"))
            assert client.recv(timeout=5) == b"in small pieces"
        wait_until(lambda: [stream.asked for stream in streams] == [[10] * 4, [65536] * 2])
        only = dialers[0].pipe
        assert only is not None
        only.options.set("connector.pipe.read_buffer", 20)
        streams[0].feed(frame(b"in larger pieces"))
        assert client.recv(timeout=5) == b"in larger pieces"
        assert streams[0].asked[-2:] == [20, 20]


def test_the_longest_content_may_be_changed_while_a_pipe_is_open(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    pipe = only_pipe(server)
    pipe.options.set("connector.pipe.max_recv_content_length", 200_000)
    peer.sendall(frame(bytes(200_000)))
    assert server.recv(timeout=5) == bytes(200_000)
    pipe.options.set("connector.pipe.max_recv_content_length", 10)
    peer.sendall(frame(bytes(10)) + frame(bytes(11)))
    assert server.recv(timeout=5) == bytes(10)
    wait_until(lambda: pipe.closed)
    assert "11 bytes" in pipe.reason


def test_a_peer_that_goes_between_two_messages_has_just_closed(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    pipe = only_pipe(server)
    peer.sendall(frame(b"last"))
    peer.close()
    assert server.recv(timeout=5) == b"last"
    wait_until(lambda: pipe.closed)
    assert pipe.reason == "the peer closed the connection"


# What a peer may do wrong


BAD_FRAMES = [
    (struct.pack(">BBBBI", TO_ONE, 0, 0, 0, 0), "ttl"),
    (struct.pack(">BBBBI", 3, 16, 0, 0, 0), "send type"),
    (struct.pack(">BBBBI", TO_DEST, 16, 0, 0, 0), "destination"),
    (struct.pack(">BBBBI", TO_ONE, 16, 255, 0, 0), "ids"),
    (struct.pack(">BBBBI", TO_ONE, 16, 200, 200, 0), "ids"),
    (struct.pack(">BBBBI", TO_ONE, 16, 0, 0, 131073), "131073 bytes"),
    (struct.pack(">BBBBI", TO_ONE, 16, 0, 0, 2**32 - 1), "4294967295 bytes"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "send type"),
]


def test_a_bad_message_closes_its_pipe_and_what_came_before_is_received(stream_address: str) -> None:
    with Socket() as server:
        where = server.listen(stream_address).address
        with plain_connection(where) as good, every_case() as case:
            server.wait_pipes(1, timeout=5)
            for bad, reason in BAD_FRAMES:
                with case(f"{bad[:8].hex()}: {reason}"), plain_connection(where) as peer:
                    server.wait_pipes(2, timeout=5)
                    _, pipe = server.pipes.values()
                    peer.sendall(frame(b"before") + bad + frame(b"after"))
                    assert server.recv(timeout=5) == b"before"
                    wait_until(lambda pipe=pipe: pipe.closed)  # type: ignore[misc]
                    assert reason in pipe.reason
                    with suppress(ConnectionResetError):
                        assert peer.recv(1) == b""
                    good.sendall(frame(b"others are untouched"))
                    assert server.recv(timeout=5) == b"others are untouched"
        server.close(linger=0)


def test_a_peer_that_dies_in_the_middle_of_a_frame_leaves_no_message(stream_address: str) -> None:
    whole = frame(b"content", source=pack_id(9))
    with Socket() as server:
        where = server.listen(stream_address).address
        for size in range(1, len(whole)):
            with plain_connection(where) as peer:
                server.wait_pipes(timeout=5)
                pipe = only_pipe(server)
                peer.sendall(whole[:size])
            wait_until(lambda pipe=pipe: pipe.closed)
            assert pipe.reason == "the peer closed the connection in the middle of a message"
            wait_until(lambda: not server.pipes)
        assert server.queued == 0


def test_the_flag_of_raw_pipes_is_not_believed_when_a_peer_sets_it(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    peer.sendall(frame(b"not raw", RAW | CONTROL))
    message = server.recv_msg(timeout=5)
    assert (message.flags, message.content) == (CONTROL, b"not raw")
    server.send_msg(message.replace(destination=b""))


def test_internal_messages_are_never_shown_and_unknown_ones_are_counted(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    peer.sendall(frame(b"\x77unknown", INTERNAL) + frame(b"", INTERNAL) + frame(b"shown"))
    assert server.recv(timeout=5) == b"shown"
    assert server.counters.drops == {"internal": 2}
    assert server.counters.messages_received == 1


def test_what_a_peer_sends_behind_its_goodbye_is_not_received(served: tuple[Socket, gsocket.socket]) -> None:
    server, peer = served
    pipe = only_pipe(server)
    peer.sendall(frame(b"last") + frame(CLOSE, INTERNAL, ttl=1) + frame(b"too late") + frame(PING, INTERNAL, ttl=1))
    assert server.recv(timeout=5) == b"last"
    wait_until(lambda: pipe.closed)
    assert pipe.reason == "the peer said goodbye"
    assert server.queued == 0
    with suppress(ConnectionResetError):
        assert peer.recv(100) == b"", "the ping behind the goodbye was answered"


def test_control_bytes_that_never_left_do_not_count_as_messages(served: tuple[Socket, gsocket.socket]) -> None:
    server, _ = served
    pipe = only_pipe(server)
    sent = 0
    while not pipe.full:
        server.send_to(pipe.path, bytes(60_000), timeout=0)
        sent += 1
    before, queued = pipe.messages_sent, pipe.queued
    for _ in range(3):
        pipe._push_control(encode(Message(flags=INTERNAL, content=b"\x09")))  # type: ignore[attr-defined]
    pipe.close()
    assert pipe.messages_sent == before
    assert pipe.counters.drops == {"disconnect": queued}
    assert before + queued == sent


def test_an_unexpected_error_of_a_connection_closes_its_pipe_and_is_reported(
    served: tuple[Socket, gsocket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake(connection: object) -> None:
        raise ValueError("a mistake")

    server, _ = served
    pipe = only_pipe(server)
    assert isinstance(pipe, FramedPipe)
    monkeypatch.setattr(type(pipe._connection), "wait_writable", mistake)
    while not pipe.full:
        server.send_to(pipe.path, bytes(60_000), timeout=0)
    writer = pipe._writer
    assert writer is not None
    with pytest.raises(ValueError, match="a mistake"):
        writer.get(timeout=5)
    assert pipe.closed and pipe.reason == "sending failed: ValueError: a mistake"
