"""A peer that speaks TLS where it should not, or does not where it should: told apart at once, and noted once."""

from __future__ import annotations

import logging
import random
import ssl

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Socket
from gmultisocket.errors import NotTLS
from gmultisocket.testing import wait_until
from tests.certificates import client_context, dial_options, listen_options


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def hello(name: str = "127.0.0.1") -> bytes:
    """Return the first bytes of a TLS client."""
    outgoing = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def closed_by(peer: gsocket.socket) -> bool:
    """Tell whether the other side ends the connection; waits for as long as the peer's own timeout."""
    try:
        while peer.recv(100):
            pass
    except ConnectionResetError:
        pass
    return True


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["127.0.0.1", "a" * 63, "a.long." + "name." * 40])
def test_a_tls_client_at_a_plain_listener_is_refused_and_noted_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Socket() as server:
        port = port_of(server.listen("tcp://127.0.0.1:0").address)
        for _ in range(3):
            with gsocket.create_connection(("127.0.0.1", port), timeout=5) as peer:
                peer.sendall(hello(name))
                assert closed_by(peer)
        (warning,) = warnings_of(caplog)
        assert "TLS" in warning


@pytest.mark.parametrize("size", [0x0200, 0x0201, 0x02FF, 0x0400])
def test_a_tls_client_is_told_apart_by_a_first_record_of_any_length(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    # As a header, these mean contents of 64 KiB and of up to 4 GiB.
    data = bytearray(hello())
    data[3:5] = size.to_bytes(2, "big")
    with Socket() as server:
        port = port_of(server.listen("tcp://127.0.0.1:0").address)
        with gsocket.create_connection(("127.0.0.1", port), timeout=5) as peer:
            peer.sendall(data)
            assert closed_by(peer)
        (warning,) = warnings_of(caplog)
        assert "the peer speaks TLS" in warning


def test_a_tls_dialer_at_a_plain_listener_is_told_at_once() -> None:
    with Socket() as server, Socket() as client:
        address = server.listen("tcp://127.0.0.1:0").address
        with gevent.Timeout(5), pytest.raises(NotTLS) as caught:
            client.dial(f"tls+{address}", dial_options())
        assert caught.value.address == f"tls+{address}"
        assert not client.dialers


@pytest.mark.parametrize(
    "data",
    [bytes(8), b"\x00\x10\x00\x00\x00\x00\x00\x05hello", b"\x02\x10\x00\x01\x00\x00\x00\x00path", b"\xff" * 100,
     b"GET / HTTP/1.1\r\n\r\n", b"PUT / HTTP/1.1\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n"],
)  # fmt: skip
def test_a_plain_peer_at_a_tls_listener_is_refused_and_noted_once(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        for _ in range(3):
            with gsocket.create_connection(("127.0.0.1", port_of(listener.address)), timeout=5) as peer:
                peer.sendall(data)
                assert closed_by(peer)
        wait_until(lambda: listener.refused == 3)
        (warning,) = warnings_of(caplog)
        assert "the peer does not speak TLS" in warning
        assert warning.count("127.0.0.1") == 1, "the address stands there once"


def test_a_plain_dialer_at_a_tls_listener_loses_its_pipe_with_its_first_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        client.dial(listener.address.removeprefix("tls+"), {"connector.dialer.reconnect": False})
        (pipe,) = client.pipes.values()
        client.send(b"hello")
        wait_until(lambda: pipe.closed)
        assert pipe.reason
        assert not server.pipes and not server.queued
        (warning,) = warnings_of(caplog)
        assert "the peer does not speak TLS" in warning


def test_an_http_server_is_no_tls_peer() -> None:
    with gsocket.socket() as listener, Socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        dialing = gevent.spawn(client.dial, f"tls+tcp://127.0.0.1:{listener.getsockname()[1]}", dial_options())
        peer, _ = listener.accept()
        with peer:
            peer.recv(4096)
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            with pytest.raises(NotTLS):
                dialing.get(timeout=5)


def test_random_bytes_in_place_of_a_handshake_disturb_nobody() -> None:
    rng = random.Random(11)
    hello_head = b"\x16\x03\x01\x00\x20\x01\x00\x00\x1c\x03\x03"
    starts = [b"", b"\x16\x03\x01", hello_head, b"\x15\x03\x03\x00\x02", b"\x80\x2e\x01"]
    with Socket() as server, Socket() as client:
        listener = server.listen("tls+tcp://127.0.0.1:0?connector.listener.handshake_timeout=200ms", listen_options())
        client.dial(listener.address, dial_options())
        for number in range(100):
            with gsocket.create_connection(("127.0.0.1", port_of(listener.address)), timeout=5) as peer:
                peer.sendall(starts[number % len(starts)] + rng.randbytes(rng.randrange(1, 600)))
        wait_until(lambda: listener.refused == 100)
        client.send(b"still here")
        assert server.recv(timeout=5) == b"still here"
