"""Calls and options that look right and did nothing, or the wrong thing, in the library that this one speaks to."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent import socket

from gmultisocket import Address, Message, Socket, Switch, pair
from gmultisocket.errors import (
    BadMessage,
    BadOptionValue,
    BadPath,
    Closed,
    ConnectionRefused,
    MessageDropped,
    NotSupported,
    Timeout,
    UnknownOption,
)
from gmultisocket.testing import wait_until
from gmultisocket.wire import RAW, TO_DEST
from tests.faults.peers import connected, crowd, frame, listening, messages, read_until_closed, stuck


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("scheme", ["inproc", "tcp"])
def test_replies_find_the_way_back_through_several_switches(scheme: str, count: int) -> None:
    """Many clients at once, so that a path that is mixed up with another's shows."""
    address = {"inproc": "inproc://hop{}", "tcp": "tcp://127.0.0.1:0"}[scheme]
    with ExitStack() as stack:
        server = stack.enter_context(Socket())
        where = server.listen(address.format("server")).address
        for number in range(count):
            back, front = stack.enter_context(Socket()), stack.enter_context(Socket())
            back.dial(where)
            where = front.listen(address.format(number)).address
            stack.enter_context(Switch(back, front))
        clients = [stack.enter_context(Socket()) for _ in range(10)]
        for client in clients:
            client.dial(where)
        for round in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d/%d" % (number, round))
            for _ in clients:
                message = server.recv_msg(timeout=5)
                assert message.hops == count + 1
                server.send_to(message.source, b"re " + message.content)
            for number, client in enumerate(clients):
                reply = client.recv_msg(timeout=5)
                assert reply.content == b"re %d/%d" % (number, round)
                assert reply.destination == b""


@pytest.mark.parametrize("address", ["inproc://first", "tcp://127.0.0.1:0"])
def test_no_send_and_no_recv_each_do_what_they_say(address: str) -> None:
    with Socket({"socket.no_send": True}) as mute, Socket({"socket.no_recv": True}) as deaf:
        deaf.dial(mute.listen(address).address)
        mute.wait_pipes(1, timeout=5)
        deaf.send(b"to one who listens")
        assert mute.recv(timeout=5) == b"to one who listens"
        with pytest.raises(NotSupported):
            mute.send(b"x")
        with pytest.raises(NotSupported):
            mute.send_all(b"x")
        with pytest.raises(NotSupported):
            deaf.recv()
    one, other = pair({"socket.no_recv": True})
    with one, other, pytest.raises(NotSupported):
        other.recv(timeout=1)


def test_an_unknown_option_in_an_address_spoils_no_later_one() -> None:
    for _ in range(3):
        with pytest.raises(UnknownOption, match="socket.send_ttl"):
            Address.parse("tcp://127.0.0.1:1?socket.sendttl_=1")
        with pytest.raises(BadOptionValue):
            Address.parse("tcp://127.0.0.1:1?socket.send_ttl=many")
        assert Address.parse("tcp://127.0.0.1:1?socket.send_ttl=3").options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("socket.send_queue_size", -1),
        ("socket.recv_queue_size", 1 << 40),
        ("connector.pipe.max_recv_content_length", 1 << 32),
        ("connector.pipe.max_recv_content_length", -1),
        ("connector.pipe.raw_recv_buf_size", 0),
        ("transport.tcp.read_buffer", -1),
        ("transport.inproc.channel.buffer_size", -5),
        ("connector.pipe_limit", 0),
        ("connector.dialer.min_reconnect_time", "soon"),
        ("connector.dialer.reconnect", 1),
        ("socket.send_overflow", "panic"),
        ("socket.send_ttl", 256),
        ("socket.send_ttl", 1.5),
        ("socket.send_stop_timeout", float("nan")),
    ],
)
def test_a_bad_value_is_an_error_wherever_it_is_given_and_never_the_default(name: str, value: Any) -> None:
    with pytest.raises(BadOptionValue, match=name):
        Socket({name: value})
    with Socket() as sock:
        with pytest.raises(BadOptionValue):
            sock.set_option(name, value)
        for call in (sock.dial, sock.listen):
            with pytest.raises(BadOptionValue):
                call("tcp://127.0.0.1:1", {name: value})
        assert not sock.dialers and not sock.listeners


@pytest.mark.parametrize("path", [b"", b"odd", b"12345", b"x" * 1024, None, "text", 7], ids=repr)
def test_what_is_no_path_is_an_error_and_writes_nothing(path: Any) -> None:
    with Socket() as sock, listening() as (silent, address):
        sock.dial(address)
        peer, _ = silent.accept()
        for _ in range(3):
            with pytest.raises(BadPath):
                sock.send_to(path, b"x")
        sock.send(b"in step")
        sock.close()
        [message] = messages(read_until_closed(peer))
        assert message.content == b"in step"
        peer.close()


def test_what_may_not_be_forwarded_is_an_error_and_not_a_silent_loss() -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        for message, reason in (
            (Message(ttl=0), "ttl"),
            (Message(flags=RAW), "raw"),
            (Message(flags=TO_DEST), "arrived"),
            (Message(source=bytes(4 * 255)), "hops"),
        ):
            with pytest.raises(MessageDropped) as caught:
                client.send_msg(message)
            assert caught.value.reason == reason
        with pytest.raises(BadMessage):
            client.send_msg(Message(flags=3))
        client.send(b"fine")
        assert server.recv(timeout=5) == b"fine"


def test_peers_queues_and_losses_can_be_seen() -> None:
    options = {"socket.send_overflow": "drop_newest", "socket.send_queue_size": 2}
    with Socket(options) as server:
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 4096})
        with stuck(listener) as [peer]:
            server.wait_pipes(1, timeout=5)
            [pipe] = server.pipes.values()
            assert pipe.peer_address == f"tcp://127.0.0.1:{peer.getsockname()[1]}"
            while not pipe.counters.drops:
                server.send_all(bytes(65536))
            assert pipe.queued == 3 and pipe.full
            peer.sendall(frame(b"1") * 5)
            wait_until(lambda: server.queued == 5)
            assert server.counters.messages_received == 5
            assert server.counters.drops == pipe.counters.drops == {"overflow": 1}
        wait_until(lambda: pipe.closed)
        assert pipe.reason
        assert server.counters.drops == {"overflow": 1, "disconnect": 3}


def test_twenty_closes_with_a_stuck_peer_leave_no_greenlet_behind() -> None:
    for _ in range(20):
        server = Socket()
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 4096})
        with stuck(listener):
            server.wait_pipes(1, timeout=5)
            for _ in range(10):
                server.send(bytes(65536), timeout=5)
            assert server.close(linger=0.001) > 0


@pytest.mark.parametrize("no_recv", [False, True])
def test_a_hundred_raw_peers_end_with_their_socket_though_nobody_receives(no_recv: bool) -> None:
    options = {"connector.pipe.raw": True, "socket.no_recv": no_recv, "socket.recv_queue_size": 1}
    with Socket(options) as server, crowd(server.listen("tcp://127.0.0.1:0"), 100) as peers:
        wait_until(lambda: len(server.pipes) == 100)
        for peer in peers:
            peer.sendall(b"raw bytes" * 100)
        wait_until(lambda: server.counters.drops.get("no_recv", 0) >= 200 if no_recv else server.queued)
        server.close()
        for peer in peers:
            assert read_until_closed(peer) == b""


def test_an_inproc_dial_never_hangs_whatever_its_listener_does() -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen("inproc://hasty")
        client.dial("inproc://hasty")
        listener.close()
        with pytest.raises(ConnectionRefused):
            client.dial("inproc://hasty", {"connector.dialer.reconnect": False})
        listener = server.listen("inproc://hasty")
        listener.close()
        server.listen("inproc://hasty")
        client.dial("inproc://hasty")
        client.send(b"there")
        assert server.recv(timeout=5) == b"there"


def test_an_inproc_peer_that_closes_is_noticed_by_the_other_end() -> None:
    with Socket() as client, Socket({"socket.recv_queue_size": 1}) as server:
        server.listen("inproc://noticed")
        client.dial("inproc://noticed", {"connector.dialer.reconnect": False})
        for number in range(60):
            client.send(b"%d" % number, timeout=5)
        server.close()
        assert not client.pipes
        assert client.send_all(b"nobody") == 0
        with pytest.raises(Timeout):
            client.send(b"nobody", timeout=0)


def test_a_closed_socket_says_so_to_every_call() -> None:
    sock = Socket()
    sock.listen("tcp://127.0.0.1:0")
    sock.close()
    for call in (sock.recv, lambda: sock.send(b"x"), lambda: sock.send_all(b"x"), lambda: sock.send_to(b"path", b"x")):
        with pytest.raises(Closed):
            call()
    for connect in (sock.dial, sock.listen):
        with pytest.raises(Closed):
            connect("tcp://127.0.0.1:1")
    assert list(sock) == []
    assert sock.close() == 0


def test_the_kernels_buffers_are_set_by_the_option_of_their_name() -> None:
    options = {"transport.tcp.read_buffer": 50_000, "transport.tcp.write_buffer": 100_000}
    with Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address, options)
        [pipe] = client.pipes.values()
        sock = pipe._connection._sock  # type: ignore[attr-defined]
        # The kernel doubles what it is asked for.
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 100_000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 200_000


def test_a_stuck_client_behind_a_switch_holds_up_nobody_where_its_socket_may_drop() -> None:
    with Socket() as back, Socket({"socket.send_overflow": "drop_newest"}) as front, Socket() as server:
        server.dial(back.listen("inproc://back").address)
        listener = front.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 4096})
        with Switch(back, front) as switch, stuck(listener) as [peer], connected(listener) as other:
            peer.sendall(frame(b"never reads"))
            stuck_way = server.recv_msg(timeout=5).source
            other.sendall(frame(b"reads"))
            other_way = server.recv_msg(timeout=5).source
            for _ in range(200):
                server.send_to(stuck_way, bytes(65536), timeout=5)
            server.send_to(other_way, b"reply", timeout=5)
            with gevent.Timeout(5):
                assert other.recv(100).endswith(b"reply")
            assert switch.running
            assert front.counters.drops["overflow"] > 50
