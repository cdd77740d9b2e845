"""The doorway: dialing, listening and stopping, options, counters, pipes; what needs no page of its own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

from gmultisocket import Address, Dialer, Listener, Socket, options, pair
from gmultisocket.errors import (
    AddressError,
    AddressInUse,
    BadOptionValue,
    ConnectionFailed,
    ConnectionRefused,
    NotSupported,
    Timeout,
    UnknownOption,
    UnknownTransport,
)
from gmultisocket.testing import wait_until
from tests.addresses import STREAMS, TRANSPORTS
from tests.cases import every_case
from tests.oracle import descriptors
from tests.peers import only_pipe


def real_address(address: str, listener: Listener) -> Address:
    """Return an address to listen at once more: as it was written, with the real port."""
    return Address.parse(address).with_location(listener.address.partition("://")[2])


def test_the_first_example_of_the_manual_works(address: str) -> None:
    with Socket() as server, Socket() as client:
        where = server.listen(address).address

        def serve() -> None:
            for msg in server:
                server.send_to(msg.source, b"Hello, " + msg.content)

        serving = gevent.spawn(serve)
        client.dial(where)
        client.send(b"world")
        assert client.recv(timeout=5) == b"Hello, world"
        server.close()
        serving.get(timeout=5)


def test_a_new_socket_has_neither_greenlet_nor_descriptor() -> None:
    before = descriptors()
    sockets = [Socket() for _ in range(10)]
    assert descriptors() == before
    for sock in sockets:
        sock.close()


# Listening


def test_a_listener_has_the_address_that_can_be_dialed(address: str) -> None:
    with Socket() as server:
        listener = server.listen(address)
        assert isinstance(listener, Listener)
        assert server.listeners == (listener,)
        bare = Address.parse(address).bare
        assert listener.given_address == bare
        if bare.endswith(":0"):
            assert listener.address.rpartition(":")[0] == bare.rpartition(":")[0]
            assert int(listener.address.rpartition(":")[2]) > 0
        else:
            assert listener.address == bare


def test_an_address_that_is_listened_to_cannot_be_taken_by_another(address: str) -> None:
    with Socket() as one, Socket() as other:
        where = real_address(address, one.listen(address))
        for sock in (one, other):
            with pytest.raises(AddressInUse) as caught:
                sock.listen(where)
            assert caught.value.address == where.bare
            assert len(sock.listeners) == (sock is one)
        one.stop_listen(where)
        other.listen(where)


def test_the_address_can_be_listened_to_again_after_stopping_and_closing(address: str) -> None:
    with Socket() as sock:
        where = real_address(address, sock.listen(address))
        for _ in range(3):
            assert sock.stop_listen(where) == 1
            sock.listen(where)
    with Socket() as sock:
        sock.listen(where)


def test_a_stopped_listener_keeps_its_pipes_and_takes_no_more(two: tuple[Socket, Socket]) -> None:
    server, client = two
    (listener,) = server.listeners
    pipe = only_pipe(server)
    listener.close()
    listener.close()
    assert listener.closed and server.listeners == ()
    client.send(b"still here")
    assert server.recv(timeout=5) == b"still here"
    assert only_pipe(server) is pipe
    with Socket() as late, pytest.raises(ConnectionFailed):
        late.dial(listener.address)


def test_stop_listen_takes_the_address_as_given_or_as_it_is(address: str) -> None:
    with Socket() as server:
        first = server.listen(address)
        assert server.stop_listen(address) == 1
        second = server.listen(address)
        assert server.stop_listen(second.address) == 1
        assert server.stop_listen(second.address) == 0
        assert first.closed and second.closed


# Dialing


def test_dial_returns_when_connected(two: tuple[Socket, Socket]) -> None:
    _, client = two
    (dialer,) = client.dialers
    assert isinstance(dialer, Dialer)
    assert dialer.pipe is only_pipe(client)
    assert dialer.pipe.dialed and not dialer.closed


def test_dialing_where_nobody_listens_fails_and_leaves_nothing(address: str) -> None:
    with Socket() as nobody:
        where = nobody.listen(address).address
    before = descriptors()
    with Socket() as client:
        with pytest.raises(ConnectionRefused) as caught:
            client.dial(where)
        assert isinstance(caught.value, ConnectionRefusedError)
        assert client.dialers == () and not client.pipes
    assert descriptors().keys() == before.keys()


def test_stop_dial_keeps_the_pipe_and_ends_the_redialing(two: tuple[Socket, Socket]) -> None:
    server, client = two
    (dialer,) = client.dialers
    assert client.stop_dial(dialer.address) == 1
    assert client.stop_dial(dialer.address) == 0
    assert dialer.closed and client.dialers == ()
    server.send(b"still here")
    assert client.recv(timeout=5) == b"still here"
    server.close_pipe(only_pipe(server).id)
    wait_until(lambda: not client.pipes)
    with pytest.raises(Timeout):
        client.wait_pipes(timeout=0.05)


def test_several_dialers_may_go_to_one_address(address: str) -> None:
    with Socket() as server, Socket() as client:
        where = server.listen(address).address
        dialers = [client.dial(where) for _ in range(3)]
        server.wait_pipes(3, timeout=5)
        assert len({dialer.pipe for dialer in dialers}) == 3
        assert client.send_all(b"x") == 3
        assert [server.recv(timeout=5) for _ in range(3)] == [b"x"] * 3
        assert client.stop_dial(where) == 3


def test_a_socket_may_dial_itself(address: str) -> None:
    with Socket() as sock:
        sock.dial(sock.listen(address).address)
        sock.wait_pipes(2, timeout=5)
        assert sock.send_all(b"hello, me") == 2
        assert [sock.recv(timeout=5) for _ in range(2)] == [b"hello, me"] * 2


# connect()


def test_connect_does_what_the_address_says(address: str) -> None:
    with Socket() as server, Socket() as client:
        listener = server.connect(f"{address}#listen")
        assert isinstance(listener, Listener)
        dialer = client.connect(f"{listener.address}?connector.dialer.reconnect=false#dial")
        assert isinstance(dialer, Dialer)
        assert dialer.options.get("connector.dialer.reconnect") is False
        with pytest.raises(AddressError):
            client.connect(listener.address)


def test_an_address_that_says_the_opposite_is_refused() -> None:
    with Socket() as sock:
        with pytest.raises(AddressError, match="#listen"):
            sock.dial("inproc://x#listen")
        with pytest.raises(AddressError, match="#dial"):
            sock.listen("inproc://x#dial")


@pytest.mark.parametrize("call", ["dial", "listen"])
def test_wrong_addresses_and_options_are_named(call: str) -> None:
    with Socket() as sock:
        connect = getattr(sock, call)
        for error, address, more in (
            (AddressError, "no address", {}),
            (AddressError, "tcp://127.0.0.1", {}),
            (UnknownTransport, "smoke://signal", {}),
            (UnknownOption, "inproc://x?socket.colour=red", {}),
            (BadOptionValue, "inproc://x?connector.pipe.raw=perhaps", {}),
            (UnknownOption, "inproc://x", {"socket.colour": "red"}),
            (BadOptionValue, "inproc://x", {"connector.pipe.raw": 7}),
        ):
            with pytest.raises(error):
                connect(address, more)
        assert sock.dialers == () and sock.listeners == ()


def test_options_given_to_a_call_override_those_of_the_address_and_these_the_sockets() -> None:
    with Socket({"connector.pipe.raw_recv_buf_size": 1}) as sock:
        address = Address.parse("inproc://order?connector.pipe.raw_recv_buf_size=2&connector.listener.backlog=5")
        listener = sock.listen(address, {options.connector.pipe.raw_recv_buf_size: 3})
        assert listener.options.get("connector.pipe.raw_recv_buf_size") == 3
        assert listener.options.get("connector.listener.backlog") == 5
        listener.close()
        assert sock.listen(address).options.get("connector.pipe.raw_recv_buf_size") == 2
        assert sock.get_option("connector.pipe.raw_recv_buf_size") == 1


# Several at once


def test_one_socket_talks_over_several_transports_at_once(tmp_path: Path) -> None:
    with Socket() as hub, ExitStack() as stack:
        # What certificates need is not the point here.
        makers = [make for name, make in TRANSPORTS.items() if name not in ("tls", "wss")]
        listeners = [hub.listen(make(tmp_path)) for make in makers]
        dialed = stack.enter_context(Socket())
        for make in makers:
            hub.dial(dialed.listen(make(tmp_path)).address)
        clients = [stack.enter_context(Socket()) for _ in listeners]
        for client, listener in zip(clients, listeners, strict=True):
            client.dial(listener.address)
        count = 2 * len(makers)
        hub.wait_pipes(count, timeout=5)
        for client in clients:
            client.send(b"question")
        for _ in clients:
            message = hub.recv_msg(timeout=5)
            hub.send_to(message.source, b"answer")
        assert [client.recv(timeout=5) for client in clients] == [b"answer"] * len(clients)
        assert hub.send_all(b"everybody") == count
        assert [client.recv(timeout=5) for client in clients] == [b"everybody"] * len(clients)
        assert [dialed.recv(timeout=5) for _ in makers] == [b"everybody"] * len(makers)
        # The way to one is shared by all of them.
        for _ in range(2 * count):
            hub.send(b"share")
        assert [client.recv(timeout=5) for client in clients for _ in range(2)] == [b"share"] * 2 * len(clients)


# Pipes


def test_pipes_are_a_live_mapping_that_cannot_be_changed(two: tuple[Socket, Socket]) -> None:
    server, client = two
    pipes = server.pipes
    pipe = only_pipe(server)
    assert pipes[pipe.id] is pipe and pipe.path == pipe.id.to_bytes(4, "big")
    with pytest.raises(TypeError):
        pipes[1] = pipe  # type: ignore[index]
    client.close()
    wait_until(lambda: not pipes)
    assert pipe.closed


def test_close_pipe_closes_one_pipe_and_says_whether_there_was_one(address: str) -> None:
    with Socket() as server, ExitStack() as stack:
        where = server.listen(address).address
        clients = [stack.enter_context(Socket({"connector.dialer.reconnect": False})) for _ in range(2)]
        for number, client in enumerate(clients):
            client.dial(where)
            server.wait_pipes(number + 1, timeout=5)
        first, second = server.pipes.values()
        assert server.close_pipe(first.id, "enough") is True
        assert server.close_pipe(first.id) is False
        assert (first.closed, first.reason, second.closed) == (True, "enough", False)
        wait_until(lambda: not clients[0].pipes)
        clients[1].send(b"x")
        assert server.recv(timeout=5) == b"x"


# wait_pipes


def test_wait_pipes_waits_for_as_many_as_asked(address: str) -> None:
    with Socket() as server, ExitStack() as stack:
        where = server.listen(address).address
        waiting = [gevent.spawn(server.wait_pipes, count) for count in (3, 1, 2)]
        gevent.sleep(0)
        for count in range(3):
            assert sum(waiter.ready() for waiter in waiting) == count
            stack.enter_context(Socket()).dial(where)
            wait_until(lambda count=count: sum(waiter.ready() for waiter in waiting) == count + 1)
        server.wait_pipes(3, timeout=0)
        server.wait_pipes(0, timeout=0)
        for timeout in (0, 0.01):
            with pytest.raises(Timeout) as caught:
                server.wait_pipes(4, timeout)
            assert caught.value.operation == "wait_pipes"


# Options and counters


def test_options_are_set_and_read_by_name_by_gos_name_and_by_object() -> None:
    with Socket({"Socket.SendQueueSize": 3}) as sock:
        assert sock.get_option("socket.send_queue_size") == 3
        sock.set_option(options.socket.send_queue_size, 4)
        assert sock.get_option("Socket.SendQueueSize") == 4
        with pytest.raises(BadOptionValue):
            sock.set_option("socket.send_queue_size", -1)
        with pytest.raises(UnknownOption):
            sock.set_option("socket.send_queue", 1)
        assert sock.get_option("socket.send_queue_size") == 4
    with pytest.raises(UnknownOption):
        Socket({"nonsense": 1})


BAD_VALUES: list[tuple[str, Any]] = [
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
]


def test_a_bad_value_is_an_error_wherever_it_is_given_and_never_the_default() -> None:
    with every_case() as case:
        for name, value in BAD_VALUES:
            with case(f"{name} = {value!r}"):
                check_bad_value(name, value)


def check_bad_value(name: str, value: Any) -> None:
    with pytest.raises(BadOptionValue, match=name):
        Socket({name: value})
    with Socket() as sock:
        with pytest.raises(BadOptionValue):
            sock.set_option(name, value)
        for call in (sock.dial, sock.listen):
            with pytest.raises(BadOptionValue):
                call("tcp://127.0.0.1:1", {name: value})
        assert not sock.dialers and not sock.listeners


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


def test_messages_and_bytes_are_counted_on_pipes_and_on_the_socket(two: tuple[Socket, Socket], transport: str) -> None:
    server, client = two
    for _ in range(10):
        client.send(bytes(100))
        client.send_all(bytes(100))
    received = [server.recv(timeout=5) for _ in range(20)]
    assert len(received) == 20
    sent = only_pipe(client).counters
    arrived = only_pipe(server).counters
    assert (sent.messages_sent, sent.messages_received) == (20, 0)
    assert (arrived.messages_received, arrived.messages_sent) == (20, 0)
    assert sent.bytes_sent == arrived.bytes_received >= 2000
    if transport in STREAMS:
        assert sent.bytes_sent == 20 * 108
    assert client.counters == sent and server.counters == arrived
    client.close()
    wait_until(lambda: not server.pipes)
    if transport not in ("ws", "wss"):
        # There, the goodbye has come meanwhile, which is bytes and no message.
        assert server.counters == arrived and client.counters == sent
    assert server.counters.messages_received == arrived.messages_received
    assert client.counters.messages_sent == sent.messages_sent


def test_a_socket_says_what_it_is_and_how_many_pipes_it_has(two: tuple[Socket, Socket]) -> None:
    server, _ = two
    assert repr(server) == "<Socket open pipes=1>"
    assert "Listener" in repr(server.listeners[0])
