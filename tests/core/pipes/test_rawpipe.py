"""Raw pipes: what plain bytes become, what plain peers are sent, and how half a connection ends."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket as gsocket
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Message, Socket
from gmultisocket.errors import MessageDropped, Timeout
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.wire import CONTROL, RAW, TO_DEST
from tests.addresses import plain_connection, plain_listener
from tests.core.streams import read_exactly
from tests.peers import only_pipe

RAW_OPTIONS = {"connector.pipe.raw": True, "connector.dialer.reconnect": False}
RESET = struct.pack("ii", 1, 0)


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


def test_whether_the_end_of_the_peers_side_closes_a_pipe_is_decided_when_it_comes(stream_address: str) -> None:
    with Socket() as server:
        where = server.listen(stream_address, {"connector.pipe.raw": True}).address
        with plain_connection(where) as peer:
            message = server.recv_msg(timeout=5)
            only_pipe(server).options.set("connector.pipe.close_on_eof", False)
            peer.shutdown(gsocket.SHUT_WR)
            assert server.recv(timeout=5) is None
            server.send_to(message.source, b"still here")
            assert read_exactly(peer, 10) == b"still here"
        server.close(linger=0)


@settings(max_examples=60)
@given(
    takes=st.lists(st.integers(0, 3000), max_size=40),
    sizes=st.lists(st.sampled_from([1, 100, 1000, 40_000, 300_000]), min_size=1, max_size=15),
)
def test_a_raw_peer_gets_the_contents_in_order_whatever_the_kernel_takes_at_a_time(
    takes: list[int], sizes: list[int]
) -> None:
    stream = FakeStream(takes=takes)
    contents = [bytes([number]) * size for number, size in enumerate(sizes)]
    limits = {"socket.send_queue_size": 3, "socket.max_send_content_length": 0}
    with FakeTransport([stream]) as fake, Socket(limits) as client:
        client.dial(fake.address, RAW_OPTIONS)
        source = client.recv_msg(timeout=5).source
        for number, content in enumerate(contents):
            if number % 2:
                client.send_to(source, content, timeout=5)
            else:
                client.send_all(content, timeout=5)
        assert client.close(linger=5) == 0
    assert bytes(stream.sent) == b"".join(contents)
    assert client.counters.messages_sent == len(contents)


def test_what_waits_for_a_raw_peer_is_lost_with_its_pipe_and_counted_and_goes_to_no_other() -> None:
    stuck, other = FakeStream(takes=[4]), FakeStream()
    with FakeTransport([stuck, other]) as fake, Socket() as client:
        for _ in range(2):
            client.dial(fake.address, RAW_OPTIONS)
        pipe = client.pipes[client.recv_msg(timeout=5).pipe_id]
        client.send_to(pipe.path, b"half gone")
        stuck.block()
        for content in (b"second", b"third"):
            client.send_to(pipe.path, content)
        assert pipe.queued == 3
        pipe.close()
        assert client.counters.drops == pipe.counters.drops == {"disconnect": 3}
        assert client.close() == 0
        assert (stuck.sent, other.sent) == (b"half", b"")
