"""A handler that keeps the event loop busy: what could not be read meanwhile is not held against the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from time import monotonic
from typing import Any

import gevent
import pytest
from websockets.frames import Opcode

from gmultisocket import Message, Pipe, Socket
from gmultisocket.testing import wait_until
from gmultisocket.wire import INTERNAL, encode
from tests.addresses import plain_connection
from tests.faults.test_other_languages import connect
from tests.peers import only_pipe
from tests.transport import wspeers

INTERVAL = 0.02
#: The longest stop, in intervals. A peer that is silent for two is cut.
LONG = 50
#: Transports with heartbeats, or with a keepalive of their own.
KERNEL = ("tcp", "tls", "ws", "wss", "ipc")
OPTIONS = {
    "connector.pipe.heartbeat_interval": INTERVAL,
    "transport.ws.ping_interval": INTERVAL,
    "transport.ws.ping_timeout": INTERVAL,
}


@pytest.fixture(params=KERNEL)
def transport(request: pytest.FixtureRequest) -> str:
    """The name of a transport whose peers are watched; the test runs once for each."""
    name: str = request.param
    return name


@pytest.fixture
def watched(transport: str, address: str) -> Iterator[tuple[Pipe, Any, Callable[[], None]]]:
    """A pipe that is watched, its peer, and a function with which the peer shows that it lives."""
    with Socket(OPTIONS) as server:
        bound = server.listen(address).address
        with closing(connected(transport, bound)) as peer:
            server.wait_pipes(1, timeout=5)
            pong = encode(Message(INTERNAL, ttl=1, content=b"\2"))
            data = wspeers.frame(Opcode.PONG) if transport in ("ws", "wss") else pong
            yield only_pipe(server), peer, lambda: peer.sendall(data)
        server.close(linger=0)


def connected(transport: str, address: str) -> Any:
    if transport in ("tls", "ws", "wss"):
        steps = {"tls": ("tls",), "ws": ("upgrade",), "wss": ("tls", "upgrade")}[transport]
        return connect(int(address.rstrip("/").rpartition(":")[2]), steps)
    return plain_connection(address)


def stay_busy(intervals: int) -> None:
    """Keep the loop from running."""
    end = monotonic() + intervals * INTERVAL
    while monotonic() < end:
        pass


def test_peers_that_answer_are_not_cut_by_the_stops_of_this_program(
    watched: tuple[Pipe, Any, Callable[[], None]],
) -> None:
    pipe, peer, show_life = watched
    for stop in (LONG, 4, 4, 10, 4, 4):
        show_life()
        # It was asked, so its answer is expected. It cannot be read before the stop is over.
        assert peer.recv(1000)
        stay_busy(stop)
        show_life()
        gevent.sleep(0)
        gevent.sleep(0)
        assert not pipe.closed, pipe.reason


def test_a_peer_that_is_silent_between_the_stops_as_well_is_cut(
    watched: tuple[Pipe, Any, Callable[[], None]],
) -> None:
    pipe, _, show_life = watched
    show_life()
    wait_until(lambda: pipe.bytes_received)
    for _ in range(10):
        stay_busy(4)
        gevent.sleep(INTERVAL)
    wait_until(lambda: pipe.closed)
    assert "silent" in pipe.reason
