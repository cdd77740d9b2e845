"""What does not speak the listener's protocol, where there is a handshake: on tls, ws and wss, at each of its layers.

Plain tcp and ipc are in ``test_hostile_bytes.py``, random bytes inside of WebSockets in ``test_hostile_websockets.py``.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent.ssl import SSLContext, SSLSocket

from gmultisocket import Socket
from gmultisocket.testing import wait_until
from tests.certificates import authority, dial_options, listen_options
from tests.faults.peers import read_until_closed
from tests.faults.test_hostile_bytes import GREETINGS
from tests.transport.wspeers import request

#: Layers under which the other language is spoken: the listener's address, and what the peer does first.
LAYERS = {
    "tls": ("tls+tcp://127.0.0.1:0", ()),
    "ws": ("ws://127.0.0.1:0", ()),
    "wss": ("wss://127.0.0.1:0", ()),
    "inside tls": ("tls+tcp://127.0.0.1:0", ("tls",)),
    "inside wss": ("wss://127.0.0.1:0", ("tls",)),
    "in a WebSocket": ("ws://127.0.0.1:0", ("upgrade",)),
    "in a secure WebSocket": ("wss://127.0.0.1:0", ("tls", "upgrade")),
}
#: A request that is right in this layer: it is the peer's own business.
RIGHT = {("ws", "ws upgrade"), ("inside wss", "ws upgrade")}


@pytest.fixture(params=list(LAYERS))
def layer(request: pytest.FixtureRequest) -> str:
    """A layer under which the other language is spoken."""
    name: str = request.param
    return name


@pytest.fixture
def served(layer: str) -> Iterator[tuple[Socket, Callable[[], Any], Socket]]:
    """A socket that listens, a function that connects a peer as far as the layer, and a good client."""
    address, steps = LAYERS[layer]
    secure = address.startswith(("tls", "wss"))
    with Socket() as server, Socket() as honest:
        listener = server.listen(address, listen_options() if secure else None)
        port = int(listener.address.rstrip("/").rpartition(":")[2])
        honest.dial(listener.address, dial_options() if secure else None)
        yield server, lambda: connect(port, steps), honest
        server.close(linger=0)


def connect(port: int, steps: tuple[str, ...]) -> Any:
    """Connect a plain socket to a port of loopback, and do the layers' handshakes."""
    peer: Any = gsocket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        if "tls" in steps:
            context = SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            authority().configure_trust(context)
            peer = SSLSocket(peer, server_hostname="127.0.0.1", _context=context)
        if "upgrade" in steps:
            peer.sendall(request())
            head = b""
            while b"\r\n\r\n" not in head:
                head += peer.recv(1000)
            assert head.startswith(b"HTTP/1.1 101 ")
    except BaseException:
        peer.close()
        raise
    return peer


def send(peer: Any, data: bytes) -> None:
    """Send as much as the other side takes before it hangs up."""
    try:
        peer.sendall(data)
    except OSError:
        pass


def read_all(peer: Any) -> None:
    try:
        read_until_closed(peer)
    except (OSError, ssl.SSLError):
        pass


def test_every_other_language_is_hung_up_on_or_waited_for_and_never_a_traceback(
    layer: str, served: tuple[Socket, Callable[[], Any], Socket], caplog: pytest.LogCaptureFixture
) -> None:
    server, connect_peer, honest = served
    with ExitStack() as stack:
        for name, greeting in GREETINGS.items():
            if (layer, name) not in RIGHT:
                send(stack.enter_context(closing(connect_peer())), greeting)
        honest.send(b"still served")
        assert server.recv(timeout=5) == b"still served"
    wait_until(lambda: len(server.pipes) == 1)
    assert not server.queued
    assert not [record for record in caplog.records if record.exc_info]


def test_a_greeting_that_comes_byte_by_byte_is_the_same(
    layer: str, served: tuple[Socket, Callable[[], Any], Socket], caplog: pytest.LogCaptureFixture
) -> None:
    server, connect_peer, honest = served

    def trickle(peer: Any, data: bytes) -> None:
        for number in range(min(len(data), 64)):
            send(peer, data[number : number + 1])
            gevent.sleep(0)

    with ExitStack() as stack:
        peers = [stack.enter_context(closing(connect_peer())) for _ in GREETINGS]
        trickling = [
            gevent.spawn(trickle, peer, greeting) for peer, greeting in zip(peers, GREETINGS.values(), strict=True)
        ]
        honest.send(b"still served")
        assert server.recv(timeout=5) == b"still served"
        gevent.joinall(trickling, raise_error=True, timeout=20)
    wait_until(lambda: len(server.pipes) == 1)
    assert not [record for record in caplog.records if record.exc_info]


def test_hundreds_of_them_are_a_few_lines_in_the_log(
    served: tuple[Socket, Callable[[], Any], Socket], caplog: pytest.LogCaptureFixture
) -> None:
    server, connect_peer, honest = served
    with ExitStack() as stack:
        peers = [stack.enter_context(closing(connect_peer())) for _ in range(100)]
        for peer in peers:
            send(peer, b"\xff" * 64)
        gevent.joinall([gevent.spawn(read_all, peer) for peer in peers], raise_error=True, timeout=20)
    honest.send(b"still served")
    assert server.recv(timeout=5) == b"still served"
    wait_until(lambda: len(server.pipes) == 1)
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(loud) <= 3
    assert all(record.getMessage().isprintable() and not record.exc_info for record in loud)
