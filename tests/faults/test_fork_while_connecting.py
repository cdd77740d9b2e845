"""A fork while connections are being made: the child has nothing to do with them, with every event loop."""

from __future__ import annotations

import logging
import os
import select
import ssl

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Socket
from gmultisocket.core.connecting.dialer import DialerState
from gmultisocket.errors import NotTLS
from gmultisocket.testing import wait_until
from gmultisocket.testing._fork import in_forked_child
from tests.certificates import client_context, dial_options, listen_options

#: As long as a child's event loop runs.
A_WHILE = 0.2


def readable(sock: gsocket.socket) -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_child_does_not_dial_for_its_parent() -> None:
    with gsocket.socket() as nobody, Socket() as sock:
        nobody.bind(("127.0.0.1", 0))
        # Twice the child's time: not even the parent dials within it.
        quick = "connector.dialer.dial_async=true&connector.dialer.min_reconnect_time=50ms"
        dialer = sock.dial(
            f"tcp://127.0.0.1:{nobody.getsockname()[1]}?{quick}&connector.dialer.max_reconnect_time=50ms"
        )
        wait_until(lambda: dialer.state is DialerState.PAUSED)

        def child(report: int) -> None:
            nobody.listen()
            gevent.sleep(A_WHILE)
            assert not readable(nobody), "the child's copy of the dialer has connected"
            assert dialer.closed

        in_forked_child(child)
        sock.wait_pipes(1, timeout=5)


def test_a_child_does_not_finish_its_parents_dial() -> None:
    with gsocket.socket() as listener, Socket() as sock:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"tls+tcp://127.0.0.1:{listener.getsockname()[1]}"
        dialing = gevent.spawn(sock.dial, address, dial_options())
        peer, _ = listener.accept()
        with peer:
            peer.recv(1)

            def child(report: int) -> None:
                # As much as OpenSSL reads at first, and enough to tell what it is not.
                os.write(peer.fileno(), b"HTTP/")
                gevent.sleep(A_WHILE)

            in_forked_child(child)
            # What the child's loop could have read is still there for the parent's.
            with pytest.raises(NotTLS):
                dialing.get(timeout=5)


def test_a_child_does_not_finish_its_parents_handshakes() -> None:
    hello = client_hello()
    with Socket() as sock:
        listener = sock.listen("tls+tcp://127.0.0.1:0", listen_options())
        port = int(listener.address.rpartition(":")[2])
        with gsocket.create_connection(("127.0.0.1", port), timeout=5) as peer:
            peer.sendall(hello[:100])
            wait_until(lambda: listener.accepted == 1)

            def child(report: int) -> None:
                os.write(peer.fileno(), hello[100:])
                gevent.sleep(A_WHILE)
                assert not readable(peer), "the child has answered"

            in_forked_child(child)
            assert peer.recv(1) == b"\x16"


def test_a_child_that_ends_in_peace_says_no_goodbye(caplog: pytest.LogCaptureFixture) -> None:
    with Socket() as server, Socket() as client, caplog.at_level(logging.DEBUG):
        client.dial(server.listen("tls+tcp://127.0.0.1:0", listen_options()).address, dial_options())
        server.wait_pipes(1, timeout=5)

        def child(report: int) -> None:
            for sock in (client, server):
                sock.close()
            gevent.sleep(A_WHILE)

        in_forked_child(child)
        for one, other in ((client, server), (server, client)):
            one.send(b"still here" * 10_000, timeout=5)
            assert other.recv(timeout=5) == b"still here" * 10_000
        assert client.reconnects == 0
