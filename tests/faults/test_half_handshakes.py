"""Peers that connect and then say nothing, or too little: they cost themselves, and hold up nobody else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Socket
from gmultisocket.core.connecting.negotiation import Negotiation
from gmultisocket.testing import wait_until
from tests.certificates import dial_options, listen_options

#: The first bytes of a ClientHello that goes on for 512 more.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextmanager
def half_open(port: int, count: int, data: bytes = b"") -> Iterator[list[gsocket.socket]]:
    """Connect many times, and say no more than ``data``."""
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(gsocket.create_connection(("127.0.0.1", port), timeout=10))
            connection.sendall(data)
            connections.append(connection)
        yield connections


@pytest.mark.parametrize("data", [b"", HELLO[:5], HELLO], ids=["silent", "a header", "half a hello"])
def test_half_tls_handshakes_hold_up_nobody(data: bytes) -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        with half_open(port_of(listener.address), 200, data):
            client.dial(listener.address, dial_options())
            client.send(b"here I am")
            assert server.recv(timeout=10) == b"here I am"
            assert len(server.pipes) == 1


def test_a_silent_peer_is_cut_when_its_time_is_up() -> None:
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0?connector.listener.handshake_timeout=50ms", listen_options())
        with half_open(port_of(listener.address), 3) as connections:
            assert [connection.recv(1) for connection in connections] == [b""] * 3
        wait_until(lambda: listener.refused == 3)


def test_a_peer_that_sends_byte_by_byte_is_cut_when_its_time_is_up() -> None:
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0?connector.listener.handshake_timeout=100ms", listen_options())
        with half_open(port_of(listener.address), 1) as (slow,):

            def trickle() -> None:
                while True:
                    slow.sendall(b"\x16\x03\x01\x02\x00" if not sent else b"\x01")
                    sent.append(1)
                    gevent.sleep(0.005)

            sent: list[int] = []
            with pytest.raises(OSError):  # noqa: PT011, a reset or a broken pipe
                trickle()
            # It was cut in the middle of what it had announced, not for anything that it said.
            assert 1 < len(sent) < 512
        wait_until(lambda: listener.refused == 1)
        assert not server.pipes


def test_those_who_dawdle_lose_their_places_to_those_who_wait(caplog: pytest.LogCaptureFixture) -> None:
    def negotiator(negotiation: Negotiation) -> None:
        if negotiation.recv(1) != b"!":
            negotiation.recv(1)

    with Socket() as server, caplog.at_level(logging.DEBUG, "gmultisocket.connector"):
        server.set_negotiator(negotiator)
        listener = server.listen("tcp://127.0.0.1:0?connector.listener.max_handshaking=4")
        with half_open(port_of(listener.address), 10, b"?"), half_open(port_of(listener.address), 1, b"!"):
            server.wait_pipes(1, timeout=10)
            # Those that the good one needed gone, and no more: four may stay until their time is up.
            assert 6 <= listener.refused <= 7
    assert sum("others wait" in record.getMessage() for record in caplog.records) == 7


def test_a_burst_of_honest_peers_is_let_in_whole() -> None:
    with Socket() as server, ExitStack() as stack:
        listener = server.listen("tls+tcp://127.0.0.1:0?connector.listener.max_handshaking=2", listen_options())
        clients = [stack.enter_context(Socket()) for _ in range(30)]
        dials = [gevent.spawn(client.dial, listener.address, dial_options()) for client in clients]
        gevent.joinall(dials, raise_error=True, timeout=30)
        server.wait_pipes(30, timeout=10)
        assert listener.refused == 0
