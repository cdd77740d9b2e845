"""What dialers and listeners share: addresses, and options that their pipes inherit."""

from __future__ import annotations

from contextlib import ExitStack

from gmultisocket import Message, Socket
from gmultisocket.testing import wait_until
from gmultisocket.wire import encode
from tests.addresses import plain_connection, plain_listener
from tests.core.streams import frame
from tests.peers import only_pipe

LIMIT = "connector.pipe.max_recv_content_length"
ONCE = {"connector.dialer.reconnect": False}


def test_a_listeners_option_reaches_the_pipes_that_it_has_already(stream_address: str) -> None:
    with Socket() as server:
        listener = server.listen(stream_address)
        with plain_connection(listener.address) as peer:
            server.wait_pipes(timeout=5)
            listener.options.set("connector.pipe.max_recv_content_length", 10)
            peer.sendall(encode(Message(content=bytes(10))) + encode(Message(content=bytes(11))))
            assert server.recv(timeout=5) == bytes(10)
            wait_until(lambda: not server.pipes)


def test_a_dialers_option_reaches_the_pipe_that_it_has_already() -> None:
    listening, address = plain_listener()
    with listening, Socket() as client:
        dialer = client.dial(address, ONCE)
        peer, _ = listening.accept()
        with peer:
            pipe = only_pipe(client)
            dialer.options.set(LIMIT, 10)
            peer.sendall(frame(bytes(10)) + frame(bytes(11)))
            assert client.recv(timeout=5) == bytes(10)
            wait_until(lambda: pipe.closed)
            assert "11 bytes" in pipe.reason


def test_an_option_of_a_listener_concerns_its_own_pipes_that_have_no_value_of_their_own(stream_address: str) -> None:
    with Socket() as server, ExitStack() as stack:
        limited, free = server.listen(stream_address), server.listen("tcp://127.0.0.1:0")
        peers = [stack.enter_context(plain_connection(where.address)) for where in (limited, limited, free)]
        for number, peer in enumerate(peers):
            peer.sendall(frame(b"%d" % number))
        pipes = {}
        for _ in peers:
            message = server.recv_msg(timeout=5)
            pipes[int(message.content)] = server.pipes[message.pipe_id]
        pipes[1].options.set(LIMIT, 100)
        limited.options.set(LIMIT, 10)
        assert [pipes[number].options.get(LIMIT) for number in range(3)] == [10, 100, 131072]
        for peer in peers:
            peer.sendall(frame(bytes(11)))
        wait_until(lambda: pipes[0].closed)
        assert [server.recv(timeout=5) for _ in range(2)] == [bytes(11)] * 2
        assert set(server.pipes.values()) == {pipes[1], pipes[2]}
        server.close(linger=0)


def test_an_endpoint_knows_the_address_that_was_given_and_the_one_that_it_has() -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen("tcp://127.0.0.1:0?connector.pipe.read_buffer=100")
        assert listener.given_address == "tcp://127.0.0.1:0"
        assert listener.address.startswith("tcp://127.0.0.1:") and not listener.address.endswith(":0")
        assert listener.options.get("connector.pipe.read_buffer") == 100
        dialer = client.dial(f"{listener.address}?connector.pipe.read_buffer=200")
        assert dialer.given_address == dialer.address == listener.address
        assert only_pipe(client).options.get("connector.pipe.read_buffer") == 200


def test_a_pipe_stays_when_its_endpoint_closes_and_still_follows_its_options(stream_address: str) -> None:
    with Socket() as server:
        listener = server.listen(stream_address)
        with plain_connection(listener.address) as peer:
            server.wait_pipes(timeout=5)
            listener.close()
            listener.close()
            assert listener.closed and not server.listeners
            peer.sendall(frame(b"still here"))
            assert server.recv(timeout=5) == b"still here"
            listener.options.set(LIMIT, 3)
            peer.sendall(frame(b"1234"))
            wait_until(lambda: not server.pipes)
