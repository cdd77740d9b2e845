"""What the kernel had taken and a peer's kernel never acknowledged is counted when the pipe closes."""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Callable

import pytest
from gevent import socket

from gmultisocket import Counters, PipeEvent, Socket
from gmultisocket.testing import wait_until
from tests.faults.peers import reset, stuck
from tests.faults.proxy import Proxy
from tests.peers import only_pipe

CONTENT = bytes(1000)
FRAME = 8 + len(CONTENT)


def arrived(sock: socket.socket) -> int:
    """Return how many bytes wait to be read from a socket."""
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0])


@pytest.mark.parametrize("end", ["reset", "close", "this side"])
def test_what_a_peer_has_not_acknowledged_is_counted_exactly_in_bytes(end: str) -> None:
    with Socket() as server, stuck(server.listen("tcp://127.0.0.1:0"), room=4096) as [peer]:
        removed: list[PipeEvent] = []
        server.on_pipe(lambda event: removed.append(event) if event.kind == "remove" else None)
        server.wait_pipes(1, timeout=5)
        pipe = only_pipe(server)
        for _ in range(200):
            server.send_all(CONTENT)
        wait_until(lambda: pipe.messages_sent == 200 and arrived(peer) > 1000)
        wait_until(lambda: pipe.bytes_sent - pipe._connection.unacknowledged() == arrived(peer))
        missing = pipe.bytes_sent - arrived(peer)
        assert pipe.counters.bytes_unconfirmed == 0, "an open pipe may still be read"
        if end == "reset":
            reset(peer)
        elif end == "close":
            # With unread bytes the kernel resets the connection.
            peer.close()
        else:
            pipe.close()
        wait_until(lambda: removed)
        messages = -(-missing // FRAME)
        for counters in (pipe.counters, server.counters):
            assert counters.bytes_unconfirmed == missing
            assert abs(counters.messages_unconfirmed - messages) <= 1
            assert counters.drops == {}, "they may have arrived"
        [event] = removed
        assert event.bytes_unconfirmed == missing
        assert event.messages_unconfirmed == pipe.counters.messages_unconfirmed


@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
def test_what_a_connection_takes_along_is_counted_on_every_transport_with_a_network(
    transport: str, new_address: Callable[[], str]
) -> None:
    options = {"connector.dialer.reconnect": False}
    with Socket() as server, Socket(options) as client:
        listener = server.listen(new_address())
        with Proxy(listener, room=4096) as proxy:
            client.dial(proxy.address_of(listener))
            server.wait_pipes(1, timeout=5)
            pipe = only_pipe(server)
            proxy.to_client.bandwidth = 1000
            for _ in range(500):
                server.send_all(CONTENT)
            wait_until(lambda: pipe.messages_sent == 500)
            # Some messages have arrived. What TLS adds only makes this stricter.
            wait_until(lambda: pipe.bytes_sent - pipe._connection.unacknowledged() > 3 * len(CONTENT))
            proxy.reset_all()
            wait_until(lambda: pipe.closed)
        counters = pipe.counters
        arrived_or_held = server.counters.messages_sent - counters.messages_unconfirmed
        assert 0 < counters.messages_unconfirmed < 500 and arrived_or_held < 500
        assert counters.bytes_unconfirmed >= (counters.messages_unconfirmed - 1) * len(CONTENT)


def test_what_was_acknowledged_is_not_counted(address: str) -> None:
    listening = address
    with Socket() as server, Socket({"connector.dialer.reconnect": False}) as client:
        where = server.listen(listening).address
        client.dial(where + listening[len(listening.partition("?")[0]) :].partition("#")[0])
        server.wait_pipes(1, timeout=5)
        pipes = only_pipe(server), only_pipe(client)
        for _ in range(100):
            client.send(CONTENT)
            assert server.recv(timeout=5) == CONTENT
        connection = pipes[1]._connection
        wait_until(lambda: not getattr(connection, "unacknowledged", int)())
        pipes[1].close()
        wait_until(lambda: pipes[0].closed)
        for pipe in pipes:
            assert pipe.counters.messages_unconfirmed == pipe.counters.bytes_unconfirmed == 0


def test_a_message_of_which_only_a_part_has_left_is_lost_and_not_unconfirmed() -> None:
    small = {"transport.tcp.write_buffer": 4096}
    with Socket() as server, stuck(server.listen("tcp://127.0.0.1:0", small), room=4096) as [peer]:
        server.wait_pipes(1, timeout=5)
        pipe = only_pipe(server)
        server.send_all(bytes(100_000))
        assert pipe.queued == 1
        reset(peer)
        wait_until(lambda: pipe.closed)
        assert pipe.counters.messages_unconfirmed == 0 < pipe.counters.bytes_unconfirmed
        assert pipe.counters.drops == {"disconnect": 1}


def test_counters_with_unconfirmed_messages_add_up_and_show_them() -> None:
    total = Counters(messages_sent=5)
    total.add(Counters(messages_unconfirmed=2, bytes_unconfirmed=30))
    total.add(Counters(messages_unconfirmed=1, bytes_unconfirmed=10))
    assert (total.messages_unconfirmed, total.bytes_unconfirmed) == (3, 40)
    assert "messages_unconfirmed=3, bytes_unconfirmed=40" in repr(total)
    assert total != Counters(messages_sent=5)
