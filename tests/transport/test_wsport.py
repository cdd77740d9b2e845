"""Ports of ws: peers that dawdle, many at once, and what is left of them."""

from __future__ import annotations

import logging
import resource
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import gevent
import pytest
from gevent import socket as gsocket
from gevent import ssl as gssl
from gevent.monkey import get_original
from websockets.frames import Opcode

from gmultisocket import Message, Socket
from gmultisocket.errors import AddressInUse, ConnectionFailed
from gmultisocket.testing import wait_until
from gmultisocket.transport import wsport
from gmultisocket.wire import encode
from tests.certificates import authority, dial_options, listen_options
from tests.faults.peers import free_port
from tests.transport.wspeers import RawPeer, frame, request, upgraded

WS = "ws://127.0.0.1:0"
HELLO = encode(Message(content=b"hello"))
HALVES = [b"", b"G", b"GET / HT", request()[:-1], b"GET / HTTP/1.1\r\nHost: x\r\n"]


@pytest.fixture
def server() -> Iterator[Socket]:
    with Socket() as sock:
        yield sock
        sock.close(linger=0)


def exchange(server: Socket, address: str) -> None:
    """Send a message from a new peer, and receive it."""
    with upgraded(address) as peer:
        peer.send(frame(Opcode.BINARY, HELLO))
        assert server.recv(timeout=5) == b"hello"


def only_port() -> wsport.Port:
    (port,) = wsport._ports.values()
    return port


def test_listeners_that_look_up_the_same_name_at_once_share_the_port(server: Socket) -> None:
    port = free_port()
    addresses = [f"ws://localhost:{port}/{path}" for path in "abc"]
    listening = [gevent.spawn(server.listen, address) for address in addresses]
    gevent.joinall(listening, raise_error=True)
    assert [each.get().address for each in listening] == addresses
    for address in addresses:
        exchange(server, address)
    only_port()
    server.stop_listen(addresses[0])
    with Socket() as other:
        with pytest.raises(AddressInUse):
            gevent.joinall([gevent.spawn(other.listen, addresses[1])], raise_error=True)
        other.listen(addresses[0])


def test_one_whose_name_is_unknown_keeps_no_other_from_the_port(server: Socket) -> None:
    def listen(path: str) -> None:
        with pytest.raises(ConnectionFailed):
            server.listen(f"ws://no-such-host.invalid:{port}/{path}")

    port = free_port()
    gevent.joinall([gevent.spawn(listen, path) for path in "ab"], raise_error=True)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("half", HALVES, ids=lambda half: ascii(half[-12:]))
def test_500_half_requests_disturb_nobody(server: Socket, half: bytes) -> None:
    address = server.listen(WS).address
    with ExitStack() as stack:
        for _ in range(500):
            peer = stack.enter_context(RawPeer(address))
            if half:
                peer.send(half)
        for _ in range(5):
            exchange(server, address)
        assert not server.pipes or len(server.pipes) <= 5


def test_a_half_request_is_refused_at_its_deadline(server: Socket) -> None:
    address = server.listen(WS, {"connector.listener.handshake_timeout": 0.05}).address
    with RawPeer(address) as silent, RawPeer(address) as half:
        half.send(request()[:50])
        assert half.status() == 408 and silent.status() == 408
        assert half.read_rest() and silent.read_rest()
    wait_until(lambda: not only_port()._reading)


def test_a_peer_that_is_in_keeps_its_pipe_however_silent(server: Socket) -> None:
    address = server.listen(WS, {"connector.listener.handshake_timeout": 0.05}).address
    with upgraded(address) as peer, RawPeer(address) as late:
        assert late.status() == 408
        peer.send(frame(Opcode.BINARY, HELLO))
        assert server.recv(timeout=5) == b"hello"


def test_who_dawdles_longest_leaves_when_there_are_too_many(server: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsport, "_PATIENCE", 0.0)
    address = server.listen(WS, {"connector.listener.max_handshaking": 3}).address
    with ExitStack() as stack:
        peers = [stack.enter_context(RawPeer(address)) for _ in range(4)]
        assert peers[0].status() == 408
        wait_until(lambda: len(only_port()._reading) == 3)
        exchange(server, address)


def test_too_many_peers_wait_in_the_backlog(server: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsport, "_MAX_PENDING", 5)
    monkeypatch.setattr(wsport, "_PATIENCE", 0.05)
    address = server.listen(WS, {"connector.listener.max_handshaking": 5}).address
    with ExitStack() as stack:
        peers = [stack.enter_context(RawPeer(address)) for _ in range(12)]
        last = stack.enter_context(RawPeer(address))
        last.send(request())
        assert last.status() == 101
        assert peers[0].status() == 408


def test_peers_that_are_too_many_are_not_accepted_until_others_have_gone(
    server: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsport, "_MAX_PENDING", 5)
    # Nobody is slow.
    monkeypatch.setattr(wsport, "_PATIENCE", 1000.0)
    address = server.listen(WS, {"connector.listener.max_handshaking": 3}).address
    with ExitStack() as stack:
        peers = [stack.enter_context(RawPeer(address)) for _ in range(8)]
        port = only_port()
        wait_until(lambda: len(port._reading) == 5)
        for _ in range(50):
            gevent.sleep(0)
            assert len(port._reading) == 5
        for peer in peers[:3]:
            peer.sock.close()
        peers[-1].send(request())
        assert peers[-1].status() == 101


@pytest.mark.timeout(120)
def test_300_peers_that_come_at_once_all_get_in(server: Socket) -> None:
    address = server.listen(WS).address

    def come() -> RawPeer:
        peer = stack.enter_context(RawPeer(address))
        peer.send(request())
        return peer

    with ExitStack() as stack:
        coming = [gevent.spawn(come) for _ in range(300)]
        peers = [each.get(timeout=30) for each in coming]
        assert [peer.status() for peer in peers] == [101] * 300
        server.wait_pipes(300, timeout=20)
        for peer in peers:
            peer.send(frame(Opcode.BINARY, HELLO))
        assert [server.recv(timeout=5) for _ in range(300)] == [b"hello"] * 300


def test_a_listener_that_is_behind_refuses_at_the_deadline() -> None:
    """The socket has all the pipes that it may, and its listener all the requests that may wait."""
    options = {"connector.listener.handshake_timeout": 0.2, "transport.ws.listener.pending_size": 1}
    with Socket({"connector.pipe_limit": 1}) as server:
        address = server.listen(WS, options).address
        with upgraded(address) as inside, ExitStack() as stack:
            peers = [stack.enter_context(RawPeer(address)) for _ in range(5)]
            for peer in peers:
                peer.send(request())
            answers = [gevent.spawn(peer.status) for peer in peers]
            wait_until(lambda: sum(answer.ready() for answer in answers) == 4)
            # One may wait for as long as it likes, until there is room.
            inside.close()
            assert sorted(answer.get(timeout=5) for answer in answers) == [101] + [503] * 4
        server.close(linger=0)


def test_a_closed_listener_refuses_those_who_wait() -> None:
    with Socket({"connector.pipe_limit": 1}) as server:
        listener = server.listen(WS)
        with upgraded(listener.address), RawPeer(listener.address) as waiting, RawPeer(listener.address) as half:
            waiting.send(request())
            wait_until(lambda: listener.transport._pending)  # type: ignore[attr-defined]
            wait_until(lambda: only_port()._reading)
            listener.close()
            assert waiting.status() == 503
            assert half.read_rest() == b""
        server.close(linger=0)


def test_no_more_requests_wait_at_a_listener_than_may_and_those_behind_them_go_with_it() -> None:
    """The port stays open, because another listener has it too."""
    with Socket({"connector.pipe_limit": 1}) as server, Socket() as other, ExitStack() as stack:
        listener = server.listen(f"{WS}/path", {"transport.ws.listener.pending_size": 1})
        other.listen(listener.address.replace("path", "other"))
        stack.enter_context(upgraded(listener.address))
        peers = [stack.enter_context(RawPeer(listener.address)) for _ in range(5)]
        for peer in peers:
            peer.send(request("/path"))
        # One is pending, and perhaps one was accepted.
        port = only_port()
        wait_until(lambda: len(port._waiting) >= 3 and not port._reading)
        assert len(listener.transport._pending) == 1  # type: ignore[attr-defined]
        listener.close()
        # One that was accepted waits for a pipe, and its connection closes with the listener as well.
        assert all(peer.read_rest().startswith(b"HTTP/1.1 503 ") for peer in peers)
        for peer in peers:
            peer.close()
        wait_until(lambda: not port._waiting)
        server.close(linger=0)


def test_a_plain_peer_at_a_tls_port_and_the_reverse_are_refused_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gmultisocket"), Socket() as server:
        secure = server.listen("wss://127.0.0.1:0", listen_options()).address
        plain = server.listen(WS).address
        with RawPeer(secure) as peer:
            peer.send(request())
            peer.read_rest()
        with RawPeer(plain) as peer:
            peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            assert peer.status() == 400
        assert len(caplog.records) == 2


def connect_and_reset(address: str) -> None:
    """Connect to a port and reset the connection, without a turn of the event loop for the listener."""
    host, port = address.partition("://")[2].split(":")
    with get_original("socket", "socket")() as peer:
        peer.connect((host, int(port)))
        peer.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_peers_that_reset_before_they_are_accepted_delay_nobody(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gmultisocket"), Socket() as server, Socket() as client:
        address = server.listen(f"{scheme}://127.0.0.1:0", listen_options() if scheme == "wss" else None).address
        for _ in range(30):
            connect_and_reset(address)
        # With a pause after each of them, even the shortest that grows to a second, it would be 24 s.
        client.dial(address, {**(dial_options() if scheme == "wss" else {}), "connector.dialer.dial_timeout": 5})
        client.send(b"hello")
        assert server.recv(timeout=5) == b"hello"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_refusals_do_not_fill_the_log(server: Socket, caplog: pytest.LogCaptureFixture) -> None:
    address = server.listen(WS).address
    with caplog.at_level(logging.WARNING, "gmultisocket"):
        for _ in range(20):
            with RawPeer(address) as peer:
                peer.send(request("/\\x1b[2J" + "a" * 300))
                assert peer.status() == 404
    (record,) = caplog.records
    assert len(record.getMessage()) < 400


def test_memory_stays_flat_under_hostile_requests(server: Socket) -> None:
    address = server.listen(WS).address

    def round_of_them() -> None:
        with ExitStack() as stack:
            for number in range(100):
                peer = stack.enter_context(RawPeer(address))
                peer.send(HALVES[number % len(HALVES)] or b"x")
            gevent.sleep(0)

    round_of_them()
    wait_until(lambda: not only_port()._reading)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10):
        round_of_them()
        wait_until(lambda: not only_port()._reading)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8192, "in KiB"


def test_a_refused_peer_that_must_leave_before_it_has_hung_up_gets_no_second_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On wss, where the first answer is not the end of the stream."""
    monkeypatch.setattr(wsport, "_PATIENCE", 0.0)
    monkeypatch.setattr(wsport, "_CLOSE_TIMEOUT", 30.0)
    with Socket() as server:
        listener = server.listen("wss://127.0.0.1:0", {**listen_options(), "connector.listener.max_handshaking": 1})
        with RawPeer(listener.address) as refused:
            refused.sock = secured(refused.sock)
            refused.send(request("/elsewhere"))
            assert refused.status() == 404
            with RawPeer(listener.address), RawPeer(listener.address):
                assert b"HTTP/1.1" not in refused.read_rest()
            assert listener.transport.refused_by_port == 1  # type: ignore[attr-defined]


def secured(sock: gsocket.socket) -> gssl.SSLSocket:
    context = gssl.SSLContext(gssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    return context.wrap_socket(sock, server_hostname="127.0.0.1")


class Endless:
    """A peer that sends faster than this side reads."""

    def __init__(self) -> None:
        self.reads = 0

    def recv(self, size: int) -> bytes:
        self.reads += 1
        return b"x" * size


def test_a_refused_peer_that_goes_on_sending_does_not_keep_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsport, "_CLOSE_TIMEOUT", 0.05)
    peer = Endless()
    turns: list[int] = []

    def count() -> None:
        while True:
            turns.append(peer.reads)
            gevent.sleep(0)

    counting = gevent.spawn(count)
    wsport._drain(peer)  # type: ignore[arg-type]
    counting.kill()
    assert len(turns) > 2
