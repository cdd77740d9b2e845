"""Pipes over bytes: frames as they are on the wire, raw peers, and what a peer may do wrong."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import suppress

import gevent
import pytest
from gevent import socket as gsocket
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Message, Socket
from gmultisocket.errors import MessageDropped, Timeout
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.wire import CONTROL, INTERNAL, RAW, TO_ALL, TO_DEST, TO_ONE, Decoder, encode, pack_id
from tests.addresses import plain_connection, plain_listener
from tests.peers import only_pipe

RESET = struct.pack("ii", 1, 0)


def frame(content: bytes, flags: int = TO_ONE, ttl: int = 16, source: bytes = b"", destination: bytes = b"") -> bytes:
    return encode(Message(flags, ttl, source, destination, content))


@pytest.fixture
def served(stream_address: str) -> Iterator[tuple[Socket, gsocket.socket]]:
    """A listening socket and a plain peer of it."""
    with Socket() as server:
        with plain_connection(server.listen(stream_address).address) as peer:
            server.wait_pipes(timeout=5)
            yield server, peer
        server.close(linger=0)


def read_exactly(peer: gsocket.socket, size: int) -> bytes:
    chunks = []
    while size:
        data = peer.recv(size)
        assert data, "the stream ended early"
        chunks.append(data)
        size -= len(data)
    return b"".join(chunks)


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


class CountingStream(FakeStream):
    """A stream that knows how much it was given at a time."""

    __slots__ = ("sizes",)

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def send(self, data: bytes | memoryview, /) -> int:
        self.sizes.append(len(data))
        return super().send(data)


def test_the_first_message_of_a_turn_leaves_at_once_and_the_others_together() -> None:
    stream = CountingStream()
    with FakeTransport([stream]) as fake, Socket() as client:
        client.dial(fake.address)
        for turn in range(3):
            for number in range(10):
                client.send(b"x" * 92)
                assert stream.sizes == [100, 900] * turn + [100], number
            gevent.sleep(0)
        assert stream.sizes == [100, 900] * 3
        # Nobody waits for the end of the turn once a queue is full.
        for _ in range(65):
            client.send(b"x" * 92)
        assert stream.sizes[6:] == [100, 6400]


def test_a_to_all_message_leaves_at_once_too_and_is_made_once_for_all_pipes() -> None:
    streams = [CountingStream() for _ in range(5)]
    with FakeTransport(streams) as fake, Socket() as server:
        for _ in streams:
            server.dial(fake.address)
        for _ in range(2):
            for _ in range(10):
                assert server.send_all(b"x" * 92) == 5
            gevent.sleep(0)
        for stream in streams:
            assert stream.sizes == [100, 900] * 2


def test_a_burst_to_more_pipes_than_a_budget_has_messages_leaves_together_too() -> None:
    streams = [CountingStream() for _ in range(5)]
    with FakeTransport(streams) as fake, Socket({"socket.yield_messages": 3}) as server:
        for _ in streams:
            server.dial(fake.address)
        for _ in range(11):
            assert server.send_all(b"x" * 92) == 5
        gevent.sleep(0)
        assert [stream.sizes for stream in streams] == [[100, 1000]] * 5


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
        for size in (10, 0):
            client.dial(fake.address, {"connector.pipe.read_buffer": size})
        for stream in streams:
            stream.feed(frame(b"in small pieces"))
            assert client.recv(timeout=5) == b"in small pieces"
        wait_until(lambda: [stream.asked for stream in streams] == [[10] * 4, [65536] * 2])
        only = next(pipe for pipe in client.pipes.values() if pipe._connection is streams[0])
        only.options.set("connector.pipe.read_buffer", 20)
        streams[0].feed(frame(b"in larger pieces"))
        assert client.recv(timeout=5) == b"in larger pieces"
        assert streams[0].asked[-2:] == [20, 20]


@settings(max_examples=150, deadline=None)
@given(
    takes=st.lists(st.integers(0, 3000), max_size=60),
    sizes=st.lists(st.sampled_from([0, 1, 100, 1000, 40_000, 70_000]), min_size=1, max_size=25),
    turns=st.integers(1, 5),
)
def test_no_frame_is_torn_or_reordered_whatever_the_kernel_takes_at_a_time(
    takes: list[int], sizes: list[int], turns: int
) -> None:
    stream = FakeStream(takes=takes)
    contents = [b"%d " % number + bytes(size) for number, size in enumerate(sizes)]
    with FakeTransport([stream]) as fake, Socket({"socket.send_queue_size": 4}) as client:
        client.dial(fake.address)
        path = only_pipe(client).path
        for number, content in enumerate(contents):
            match number % 3:
                case 0:
                    client.send(content, timeout=5)
                case 1:
                    client.send_all(content, timeout=5)
                case 2:
                    client.send_to(path, content, timeout=5)
            if number % turns == 0:
                gevent.sleep(0)
        assert client.close(linger=5) == 0
    messages = Decoder(1).feed(bytes(stream.sent))
    assert [Message(*fields).content for fields in messages] == contents
    assert client.counters.messages_sent == len(contents)
    assert client.counters.bytes_sent == len(stream.sent)


# What a peer may do wrong


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (struct.pack(">BBBBI", TO_ONE, 0, 0, 0, 0), "ttl"),
        (struct.pack(">BBBBI", 3, 16, 0, 0, 0), "send type"),
        (struct.pack(">BBBBI", TO_DEST, 16, 0, 0, 0), "destination"),
        (struct.pack(">BBBBI", TO_ONE, 16, 255, 0, 0), "ids"),
        (struct.pack(">BBBBI", TO_ONE, 16, 200, 200, 0), "ids"),
        (struct.pack(">BBBBI", TO_ONE, 16, 0, 0, 131073), "131073 bytes"),
        (struct.pack(">BBBBI", TO_ONE, 16, 0, 0, 2**32 - 1), "4294967295 bytes"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "send type"),
    ],
)
def test_a_bad_message_closes_its_pipe_and_what_came_before_is_received(
    served: tuple[Socket, gsocket.socket], bad: bytes, reason: str
) -> None:
    server, peer = served
    pipe = only_pipe(server)
    with plain_connection(server.listeners[0].address) as good:
        server.wait_pipes(2, timeout=5)
        peer.sendall(frame(b"before") + bad + frame(b"after"))
        assert server.recv(timeout=5) == b"before"
        wait_until(lambda: pipe.closed)
        assert reason in pipe.reason
        with suppress(ConnectionResetError):
            assert peer.recv(1) == b""
        good.sendall(frame(b"others are untouched"))
        assert server.recv(timeout=5) == b"others are untouched"


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


# Pipes that break


def test_a_pipe_whose_write_fails_still_delivers_what_its_peer_had_sent() -> None:
    stream = FakeStream([], takes=[ConnectionResetError(104, "reset")])
    with FakeTransport([stream]) as fake, Socket() as client:
        dialer = client.dial(fake.address, {"connector.dialer.reconnect": False})
        pipe = dialer.pipe
        assert pipe is not None
        client.send_all(b"lost")
        assert pipe.state.value == "draining" and client.send_all(b"nobody") == 0
        stream.feed(frame(b"sent before"), frame(b"and this"), b"")
        assert [client.recv(timeout=5) for _ in range(2)] == [b"sent before", b"and this"]
        wait_until(lambda: pipe.closed)
        assert pipe.reason == "sending failed: connection reset by peer"
        assert client.counters.drops == {"disconnect": 1}


def test_a_writer_that_fails_later_gives_its_messages_to_another_pipe() -> None:
    broken = FakeStream(takes=[0, 0, BrokenPipeError(32, "broken")])
    good = FakeStream()
    with FakeTransport([broken, good]) as fake, Socket() as client:
        client.dial(fake.address, {"connector.dialer.reconnect": False})
        client.send(b"1")
        client.send(b"2")
        client.dial(fake.address)
        broken.feed(b"")
        wait_until(lambda: len(client.pipes) == 1)
        client.close()
    contents = [Message(*fields).content for fields in Decoder(1).feed(bytes(good.sent))]
    assert contents == [b"1", b"2"]


def test_a_message_that_is_half_gone_is_lost_with_its_pipe_and_counted_and_never_sent_twice() -> None:
    broken = FakeStream(takes=[3, 0, BrokenPipeError(32, "broken")])
    good = FakeStream()
    with FakeTransport([broken, good]) as fake, Socket() as client:
        client.dial(fake.address, {"connector.dialer.reconnect": False})
        client.send(b"half")
        client.send(b"whole")
        client.dial(fake.address)
        broken.feed(b"")
        wait_until(lambda: len(client.pipes) == 1)
        client.close()
    contents = [Message(*fields).content for fields in Decoder(1).feed(bytes(good.sent))]
    assert contents == [b"whole"]
    assert client.counters.drops == {"disconnect": 1}


def test_a_reader_error_is_the_reason() -> None:
    stream = FakeStream()
    with FakeTransport([stream]) as fake, Socket() as client:
        dialer = client.dial(fake.address, {"connector.dialer.reconnect": False})
        pipe = dialer.pipe
        assert pipe is not None
        # The kernel's ETIMEDOUT is no timeout of anybody's: the connection is gone.
        stream.feed(frame(b"x"), TimeoutError(110, "timed out"))
        assert client.recv(timeout=5) == b"x"
        wait_until(lambda: pipe.closed)
        assert pipe.reason == "receiving failed: connection timed out"


# Raw pipes


@pytest.fixture
def raw(stream_address: str) -> Iterator[tuple[Socket, gsocket.socket]]:
    """A socket with a listener for raw peers, and one of those."""
    with Socket() as server:
        where = server.listen(stream_address, {"connector.pipe.raw": True}).address
        with plain_connection(where) as peer:
            announcement = server.recv_msg(timeout=5)
            assert (announcement.content, announcement.flags) == (b"", RAW)
            yield server, peer
        server.close(linger=0)


def test_a_raw_pipe_announces_itself_and_can_be_greeted_before_it_speaks(stream_address: str) -> None:
    with Socket() as server:
        where = server.listen(stream_address, {"connector.pipe.raw": True}).address
        with plain_connection(where) as peer:
            announcement = server.recv_msg(timeout=5)
            pipe = only_pipe(server)
            assert pipe.raw
            assert announcement == Message(RAW, 15, pipe.path, b"", b"", pipe.id)
            server.send_to(announcement.source, b"220 welcome\r\n")
            assert read_exactly(peer, 13) == b"220 welcome\r\n"


def test_each_chunk_that_is_read_becomes_a_message_with_a_way_back(raw: tuple[Socket, gsocket.socket]) -> None:
    server, peer = raw
    peer.sendall(b"hello")
    message = server.recv_msg(timeout=5)
    pipe = only_pipe(server)
    assert message == Message(RAW, 15, pipe.path, b"", b"hello", pipe.id)
    server.send_to(message.source, b"HELLO")
    assert read_exactly(peer, 5) == b"HELLO"


def test_no_chunk_is_longer_than_the_option_says(stream_address: str) -> None:
    options = {"connector.pipe.raw": True, "connector.pipe.raw_recv_buf_size": 10}
    with Socket() as server:
        where = server.listen(stream_address, options).address
        with plain_connection(where) as peer:
            peer.sendall(b"0123456789" * 5)
            assert server.recv(timeout=5) == b""
            chunks = []
            while sum(map(len, chunks)) < 50:
                chunks.append(server.recv(timeout=5))
            assert b"".join(chunks) == b"0123456789" * 5 and max(map(len, chunks)) <= 10
            only_pipe(server).options.set("connector.pipe.raw_recv_buf_size", 25)
            gevent.sleep(0)
            peer.sendall(b"x")
            server.recv(timeout=5)
            peer.sendall(b"0123456789" * 5)
            chunks = []
            while sum(map(len, chunks)) < 50:
                chunks.append(server.recv(timeout=5))
            assert b"".join(chunks) == b"0123456789" * 5 and max(map(len, chunks)) > 10


def test_to_one_messages_never_go_to_a_raw_pipe_and_to_all_messages_do(raw: tuple[Socket, gsocket.socket]) -> None:
    server, peer = raw
    with pytest.raises(Timeout):
        server.send(b"for a socket", timeout=0.01)
    assert server.send_all(b"for everybody") == 1
    assert read_exactly(peer, 13) == b"for everybody"


def test_only_plain_contents_are_written_to_a_raw_peer(raw: tuple[Socket, gsocket.socket]) -> None:
    server, peer = raw
    path = only_pipe(server).path
    server.send_msg(Message(TO_DEST | CONTROL, destination=path, content=b"control"))
    server.send_to(path, b"")
    server.send_to(path, b"plain")
    assert read_exactly(peer, 5) == b"plain"
    assert server.counters.drops == {"flags": 1}


def test_a_raw_peer_that_ends_its_side_loses_its_pipe(raw: tuple[Socket, gsocket.socket]) -> None:
    server, peer = raw
    pipe = only_pipe(server)
    peer.sendall(b"bye")
    peer.shutdown(gsocket.SHUT_WR)
    assert server.recv(timeout=5) == b"bye"
    wait_until(lambda: pipe.closed)
    assert pipe.reason == "the peer closed the connection"
    assert peer.recv(1) == b""


def test_a_raw_peer_that_ends_its_side_may_stay_and_hear_the_answer(stream_address: str) -> None:
    options = {"connector.pipe.raw": True, "connector.pipe.close_on_eof": False}
    with Socket() as server:
        where = server.listen(stream_address, options).address
        with plain_connection(where) as peer:
            peer.sendall(b"question")
            peer.shutdown(gsocket.SHUT_WR)
            contents: list[bytes | None] = []
            while not contents or contents[-1] is not None:
                message = server.recv_msg(timeout=5)
                contents.append(message.content)
            assert b"".join(content for content in contents if content) == b"question"
            assert not server.pipes[message.pipe_id].closed
            answered = gevent.spawn(read_exactly, peer, 1_000_000)
            for _ in range(10):
                server.send_to(message.source, bytes(100_000), timeout=5)
            assert answered.get(timeout=5) == bytes(1_000_000)
            server.close_pipe(message.pipe_id)
            assert peer.recv(1) == b""


def test_a_half_closed_raw_pipe_ends_when_its_peer_is_gone_for_good() -> None:
    options = {"connector.pipe.raw": True, "connector.pipe.close_on_eof": False}
    with Socket() as server:
        where = server.listen("tcp://127.0.0.1:0", options).address
        with plain_connection(where) as peer:
            peer.shutdown(gsocket.SHUT_WR)
            assert [server.recv(timeout=5) for _ in range(2)] == [b"", None]
            pipe = only_pipe(server)
            peer.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, RESET)
        wait_until(lambda: pipe.closed or not server.send_all(b"anybody there?"))
        assert "sending failed" in pipe.reason


def test_a_socket_may_dial_a_plain_server() -> None:
    listener, where = plain_listener()
    with listener, Socket() as client:
        client.dial(where, {"connector.pipe.raw": True})
        peer, _ = listener.accept()
        with peer:
            message = client.recv_msg(timeout=5)
            client.send_to(message.source, b"PING\r\n")
            assert read_exactly(peer, 6) == b"PING\r\n"
            peer.sendall(b"PONG\r\n")
            assert client.recv(timeout=5) == b"PONG\r\n"
        client.close(linger=0)


def test_raw_and_framed_peers_may_share_a_socket() -> None:
    with Socket() as server, Socket() as framed:
        raw_address = server.listen("tcp://127.0.0.1:0", {"connector.pipe.raw": True}).address
        framed.dial(server.listen("tcp://127.0.0.1:0").address)
        with plain_connection(raw_address) as peer:
            server.wait_pipes(2, timeout=5)
            assert server.recv(timeout=5) == b""
            assert server.send_all(b"to both") == 2
            assert framed.recv(timeout=5) == b"to both"
            assert read_exactly(peer, 7) == b"to both"
            for _ in range(5):
                server.send(b"one")
            assert [framed.recv(timeout=5) for _ in range(5)] == [b"one"] * 5


def test_a_raw_message_is_not_forwarded_to_a_framed_pipe(raw: tuple[Socket, gsocket.socket]) -> None:
    server, peer = raw
    peer.sendall(b"raw")
    message = server.recv_msg(timeout=5)
    with pytest.raises(MessageDropped) as caught:
        server.send_msg(message)
    assert caught.value.reason == "raw"


def test_a_raw_socket_that_does_not_receive_holds_its_peer_up_and_closes(raw: tuple[Socket, gsocket.socket]) -> None:
    server, peer = raw
    peer.settimeout(0.05)
    with pytest.raises(TimeoutError):
        while True:
            peer.sendall(bytes(1 << 16))
    assert server.queued == 64
    server.close(linger=0)
    assert server.queued >= 64
