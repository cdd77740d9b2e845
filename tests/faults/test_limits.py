"""Limits that operators set: silent and idle pipes, unfinished messages, and what one peer may take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from websockets.frames import Opcode

from gmultisocket import Message, Socket
from gmultisocket.errors import MultiSocketError
from gmultisocket.testing import wait_until
from gmultisocket.transport.peerlimits import address_key, identity_key
from gmultisocket.transport.wshandshake import UpgradeRequest
from gmultisocket.wire import INTERNAL, encode
from tests.addresses import plain_connection
from tests.certificates import (
    client_certificate,
    dial_options,
    listen_options,
    server_certificate,
    write_authority,
    write_certificate,
)
from tests.peers import only_pipe
from tests.transport.wspeers import RawPeer, frame, request

LONG = 10.0
PIPE = "connector.pipe."
LISTENER = "connector.listener."
SHORT = 0.05
PING = encode(Message(INTERNAL, ttl=1, content=b"\1"))
HELLO = encode(Message(content=b"hello"))
NETWORK = ["tcp", "tls", "ws", "wss"]
ADDRESSES = {
    "tcp": "tcp://127.0.0.1:0", "tls": "tls+tcp://127.0.0.1:0", "ws": "ws://127.0.0.1:0", "wss": "wss://127.0.0.1:0",
}  # fmt: skip


def options_of(transport: str, secure: Callable[[], dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {**(secure() if transport in ("tls", "wss") else {}), **more}


@pytest.fixture(params=NETWORK)
def network(request: pytest.FixtureRequest) -> str:
    """The name of a transport whose peers have an IP address; the test runs once for each."""
    name: str = request.param
    return name


class Plain:
    """A peer that speaks the wire by hand, over tcp, ipc or ws."""

    def __init__(self, address: str) -> None:
        self.ws = address.startswith("ws")
        self.peer: Any = RawPeer(address) if self.ws else plain_connection(address)
        if self.ws:
            self.peer.send(request())
            assert self.peer.status() == 101

    def send(self, data: bytes) -> None:
        if self.ws:
            self.peer.send(data)
        else:
            self.peer.sendall(data)

    def frame(self, data: bytes) -> bytes:
        return frame(Opcode.BINARY, data) if self.ws else data

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *error: object) -> None:
        if self.ws:
            self.peer.__exit__(None, None, None)
        else:
            self.peer.close()


@pytest.fixture(params=["tcp://127.0.0.1:0", "ws://127.0.0.1:0", "ipc"])
def wire(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """An address at which a peer can speak the wire by hand."""
    return f"ipc://{tmp_path}/socket" if request.param == "ipc" else request.param


@contextlib.contextmanager
def served(address: str, options: dict[str, Any]) -> Iterator[tuple[Socket, Plain]]:
    """A socket with these options and a plain peer of it."""
    with Socket() as server:
        with Plain(server.listen(address, options).address) as peer:
            server.wait_pipes(timeout=LONG)
            yield server, peer
        server.close(linger=0)


# Silent and idle pipes


@pytest.mark.parametrize("option", ["heartbeat_timeout", "idle_timeout"])
def test_silent_peers_do_not_hold_the_pipe_limit_for_ever(wire: str, option: str) -> None:
    options = {PIPE + option: SHORT, PIPE + "heartbeat_interval": SHORT / 2, "connector.pipe_limit": 5}
    with Socket(options) as server, contextlib.ExitStack() as stack:
        address = server.listen(wire).address
        for _ in range(5):
            stack.enter_context(Plain(address))
        server.wait_pipes(5, timeout=LONG)
        with Plain(address) as honest:
            honest.send(honest.frame(HELLO))
            assert server.recv(timeout=LONG) == b"hello"
        server.close(linger=0)


def test_a_heartbeat_timeout_cuts_a_peer_that_never_answered_a_ping(wire: str) -> None:
    with served(wire, {PIPE + "heartbeat_timeout": SHORT}) as (server, _):
        pipe = only_pipe(server)
        wait_until(lambda: pipe.closed)
        assert "silent" in pipe.reason


def test_pings_keep_no_idle_pipe_open(wire: str) -> None:
    with served(wire, {PIPE + "idle_timeout": SHORT}) as (server, peer):
        pipe = only_pipe(server)
        with contextlib.suppress(OSError):
            while not pipe.closed:
                peer.send(peer.frame(PING))
                gevent.sleep(SHORT / 10)
        assert "idle_timeout" in pipe.reason


@pytest.mark.parametrize("receives", [True, False], ids=["the peer receives", "the peer sends"])
def test_a_message_in_either_direction_keeps_a_pipe_open(wire: str, receives: bool) -> None:
    with served(wire, {PIPE + "idle_timeout": 4 * SHORT}) as (server, peer):
        pipe = only_pipe(server)
        for _ in range(20):
            if receives:
                server.send(b"news")
            else:
                peer.send(peer.frame(HELLO))
                assert server.recv(timeout=LONG) == b"hello"
            gevent.sleep(SHORT / 2)
        assert not pipe.closed
        wait_until(lambda: pipe.closed)


# Messages that do not end


@pytest.mark.parametrize("cut", [3, 20, -1], ids=["header", "content", "last byte"])
def test_a_message_that_stops_half_way_closes_the_pipe(wire: str, cut: int) -> None:
    with served(wire, {PIPE + "frame_timeout": SHORT}) as (server, peer):
        pipe = only_pipe(server)
        peer.send(peer.frame(HELLO) + peer.frame(encode(Message(content=bytes(100))))[:cut])
        assert server.recv(timeout=LONG) == b"hello"
        wait_until(lambda: pipe.closed)
        assert "frame_timeout" in pipe.reason


def test_a_message_that_trickles_closes_the_pipe(wire: str) -> None:
    with served(wire, {PIPE + "frame_timeout": SHORT}) as (server, peer):
        pipe = only_pipe(server)
        data = peer.frame(encode(Message(content=bytes(100_000))))
        with contextlib.suppress(OSError):
            for start in range(len(data)):
                peer.send(data[start : start + 1])
                gevent.sleep(SHORT / 10)
                if pipe.closed:
                    break
        assert "frame_timeout" in pipe.reason


def test_half_a_message_of_a_slow_receiver_is_not_the_peers_fault(wire: str) -> None:
    """Nothing is read while the receive queue is full, so the rest of a message stays in the kernel."""
    with Socket({"socket.recv_queue_size": 1}) as server:
        options = {PIPE + "frame_timeout": SHORT, PIPE + "idle_timeout": SHORT, PIPE + "read_buffer": 64}
        with Plain(server.listen(wire, options).address) as peer:
            peer.send(peer.frame(HELLO) * 30)
            server.wait_pipes(timeout=LONG)
            wait_until(lambda: server.queued)
            gevent.sleep(6 * SHORT)
            assert [server.recv(timeout=LONG) for _ in range(30)] == [b"hello"] * 30
        server.close(linger=0)


def test_a_silent_peer_between_two_messages_is_not_in_the_middle_of_one(wire: str) -> None:
    with served(wire, {PIPE + "frame_timeout": SHORT}) as (server, peer):
        peer.send(peer.frame(HELLO))
        assert server.recv(timeout=LONG) == b"hello"
        gevent.sleep(6 * SHORT)
        assert not only_pipe(server).closed


# Rates


def test_a_peer_that_sends_too_many_messages_is_read_more_slowly_and_loses_none(wire: str) -> None:
    with served(wire, {PIPE + "max_message_rate": 1000.0}) as (server, peer):
        began = monotonic()
        sending = gevent.spawn(peer.send, peer.frame(HELLO) * 1600)
        assert [server.recv(timeout=LONG) for _ in range(1600)] == [b"hello"] * 1600
        # The first second's worth comes at once.
        assert monotonic() - began > 0.4
        sending.get(timeout=LONG)
        assert not only_pipe(server).closed


def test_a_peer_that_sends_too_many_bytes_is_read_more_slowly(wire: str) -> None:
    with served(wire, {PIPE + "max_byte_rate": 100_000.0}) as (server, peer):
        data = peer.frame(encode(Message(content=bytes(1000)))) * 160
        sending = gevent.spawn(peer.send, data)
        began = monotonic()
        assert [len(server.recv(timeout=LONG)) for _ in range(160)] == [1000] * 160
        assert monotonic() - began > 0.4
        sending.get(timeout=LONG)


@pytest.mark.parametrize("option", ["max_message_rate", "max_byte_rate"])
def test_a_peer_that_sends_too_much_is_cut_if_the_option_says_so(wire: str, option: str) -> None:
    with served(wire, {PIPE + option: 20.0, PIPE + "over_rate": "close"}) as (server, peer):
        pipe = only_pipe(server)
        with contextlib.suppress(OSError):
            while not pipe.closed:
                peer.send(peer.frame(HELLO) * 5)
                gevent.sleep(0.005)
        assert option in pipe.reason


def test_a_rate_may_be_set_and_lifted_while_the_pipe_is_open(wire: str) -> None:
    with served(wire, {}) as (server, peer):
        pipe = only_pipe(server)
        pipe.options.set(PIPE + "max_message_rate", 1.0)
        peer.send(peer.frame(HELLO) * 3)
        assert [server.recv(timeout=LONG) for _ in range(3)] == [b"hello"] * 3
        pipe.options.set(PIPE + "max_message_rate", 0.0)
        peer.send(peer.frame(HELLO) * 300)
        assert [server.recv(timeout=LONG) for _ in range(300)] == [b"hello"] * 300


def test_a_pause_of_a_fast_peer_ends_when_the_pipe_closes(wire: str) -> None:
    with Socket() as server, Plain(server.listen(wire, {PIPE + "max_message_rate": 0.01}).address) as peer:
        peer.send(peer.frame(HELLO) * 10)
        assert server.recv(timeout=LONG) == b"hello"
        with gevent.Timeout(LONG):
            server.close(linger=0)


def test_a_heartbeat_does_not_cut_a_peer_that_is_not_read_from(wire: str) -> None:
    options = {PIPE + "max_message_rate": 10.0, PIPE + "heartbeat_timeout": SHORT, PIPE + "idle_timeout": SHORT}
    with served(wire, options) as (server, peer):
        pipe = only_pipe(server)
        peer.send(peer.frame(HELLO) * 15)
        assert server.recv(timeout=LONG) == b"hello"
        gevent.sleep(4 * SHORT)
        assert not pipe.closed


# Connections of one peer


def test_an_address_has_no_more_connections_than_it_may(network: str) -> None:
    options = options_of(network, listen_options, **{LISTENER + "max_per_address": 2})
    with Socket() as server, contextlib.ExitStack() as stack:
        listener = server.listen(ADDRESSES[network], options)
        dialing = options_of(network, dial_options, **{"connector.dialer.dial_timeout": LONG})
        clients = [stack.enter_context(Socket()) for _ in range(2)]
        for client in clients:
            client.dial(listener.address, dialing)
        server.wait_pipes(2, timeout=LONG)
        with Socket() as more:
            with contextlib.suppress(MultiSocketError):
                more.dial(listener.address, {**dialing, "connector.dialer.reconnect": False})
            wait_until(lambda: listener.refused == 1)
            wait_until(lambda: not more.pipes)
        assert len(server.pipes) == 2
        # When one has left, the next may come.
        clients[0].close(linger=0)
        wait_until(lambda: len(server.pipes) == 1)
        with Socket() as late:
            late.dial(listener.address, dialing)
            server.wait_pipes(2, timeout=LONG)


def test_silent_connections_count_for_their_address(network: str) -> None:
    options = options_of(network, listen_options, **{LISTENER + "max_per_address": 2})
    with Socket() as server, contextlib.ExitStack() as stack:
        server.set_negotiator(None if network != "tcp" else lambda negotiation: negotiation.recv(1))
        address = server.listen(ADDRESSES[network], options).address
        where = "127.0.0.1", int(address.partition("://")[2].rstrip("/").rpartition(":")[2])
        silent = [stack.enter_context(gsocket.create_connection(where)) for _ in range(3)]
        silent[2].settimeout(LONG)
        answer = silent[2].recv(100)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 429")
        silent[0].close()
        silent[1].settimeout(0.05)
        with pytest.raises(TimeoutError):
            silent[1].recv(1)


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("no:address", "no:address"),
    ],
)
def test_an_ipv6_host_is_counted_with_its_network(host: str, key: str) -> None:
    assert address_key(host) == key


def test_a_user_has_no_more_pipes_than_it_may() -> None:
    def authorize(question: UpgradeRequest) -> str:
        return question.query

    options = {LISTENER + "max_per_identity": 2, "transport.ws.listener.authorize": authorize}
    with Socket() as server, contextlib.ExitStack() as stack:
        listener = server.listen("ws://127.0.0.1:0", options)
        peers = []
        for user, status in [("anna", 101), ("anna", 101), ("anna", 429), ("otto", 101)]:
            peer = stack.enter_context(RawPeer(listener.address))
            peer.send(request(f"/?{user}"))
            assert peer.status() == status
            peers.append(peer)
        server.wait_pipes(3, timeout=LONG)
        peers[0].__exit__(None, None, None)
        server_pipes = server.pipes
        wait_until(lambda: len(server_pipes) == 2)
        with RawPeer(listener.address) as again:
            again.send(request("/?anna"))
            assert again.status() == 101
        server.close(linger=0)


def test_a_uid_has_no_more_pipes_than_it_may(tmp_path: Path) -> None:
    with Socket() as server, Socket() as first, Socket() as second:
        listener = server.listen(f"ipc://{tmp_path}/one", {LISTENER + "max_per_identity": 1})
        first.dial(listener.address)
        server.wait_pipes(1, timeout=LONG)
        second.dial(listener.address, {"connector.dialer.reconnect": False})
        wait_until(lambda: listener.refused == 1)
        assert len(server.pipes) == 1


def test_a_certificate_has_no_more_pipes_than_it_may(tmp_path: Path) -> None:
    mutual = {**write_certificate(tmp_path, server_certificate(), "server"), **write_authority(tmp_path)}
    folder = tmp_path / "client"
    folder.mkdir()
    dialing = {**write_authority(folder), **write_certificate(folder, client_certificate(), "client")}
    with Socket() as server, Socket() as first, Socket() as second:
        listener = server.listen("tls+tcp://127.0.0.1:0", {**mutual, LISTENER + "max_per_identity": 1})
        first.dial(listener.address, dialing)
        server.wait_pipes(1, timeout=LONG)
        second.dial(listener.address, {**dialing, "connector.dialer.reconnect": False})
        wait_until(lambda: listener.refused == 1)
        assert len(server.pipes) == 1


def test_who_shows_nothing_has_no_identity() -> None:
    assert identity_key({"certificate": None, "cipher": "x"}) is None and identity_key({}) is None
    assert identity_key({"user": "a", "uid": 3}) == identity_key({"user": "a", "uid": 4}) != identity_key({"user": "b"})


# The pace of accepting


def test_a_listener_accepts_no_faster_than_it_may(network: str) -> None:
    options = options_of(network, listen_options, **{LISTENER + "accept_rate": 10.0})
    with Socket() as server, contextlib.ExitStack() as stack:
        listener = server.listen(ADDRESSES[network], options)
        began = monotonic()
        dials = []
        for _ in range(16):
            client = stack.enter_context(Socket())
            dials.append(gevent.spawn(client.dial, listener.address, options_of(network, dial_options)))
        gevent.joinall(dials, timeout=LONG, raise_error=True)
        server.wait_pipes(16, timeout=LONG)
        assert monotonic() - began > 0.4


def test_nothing_is_limited_by_default(wire: str) -> None:
    with served(wire, {}) as (server, peer):
        pipe = only_pipe(server)
        assert pipe._rates is None  # type: ignore[attr-defined]
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Plain(server.listeners[0].address)) for _ in range(20)]
            server.wait_pipes(21, timeout=LONG)
            assert len(peers) == 20
