"""Peers of tcp and ipc that begin a message and do not go on: 500 of them, beside one that is only idle.

On these transports nothing comes before the first message, so its deadline is the only one. Half handshakes are in
``test_half_handshakes.py`` and ``test_silent_sockets.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Socket
from gmultisocket.testing import wait_until
from tests.addresses import TRANSPORTS, plain_connection
from tests.faults.peers import frame, read_until_closed
from tests.faults.process import MIB, cpu_time, many_descriptors, resident

COUNT = 500
BEGUN = frame(b"never comes")


@pytest.fixture(params=["tcp", "ipc", "ipc-abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where to listen, on each transport without a handshake."""
    return TRANSPORTS[request.param](tmp_path)


@pytest.fixture
def peers() -> Iterator[ExitStack]:
    """Connections that are closed after the test."""
    with many_descriptors(3 * COUNT), ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("data", [BEGUN[:1], BEGUN[:7], BEGUN[:-1]], ids=["1 byte", "7 bytes", "all but one"])
def test_half_messages_hold_up_nobody_and_are_cut_when_their_time_is_up(
    address: str, data: bytes, peers: ExitStack
) -> None:
    options = {"connector.pipe.frame_timeout": 1.0, "connector.listener.backlog": 2 * COUNT}
    with Socket(options) as server:
        bound = server.listen(address).address
        idle = peers.enter_context(closing(plain_connection(bound)))
        before = resident()
        slow = []
        for _ in range(COUNT):
            peer = peers.enter_context(closing(plain_connection(bound)))
            peer.sendall(data)
            slow.append(peer)
        with Socket() as honest:
            honest.dial(bound)
            honest.send(b"not held up")
            assert server.recv(timeout=5) == b"not held up"
            wait_until(lambda: len(server.pipes) == 2, 8)
            assert all(read_until_closed(peer) == b"" for peer in slow)
        # It had nothing to end: a pipe without a message is no half message.
        idle.sendall(frame(b"still here"))
        assert server.recv(timeout=5) == b"still here"
        assert not server.queued
        assert resident() - before < 16 * MIB


def test_a_message_byte_by_byte_is_cut_by_the_time_of_its_beginning(address: str, peers: ExitStack) -> None:
    def trickle(peer: gsocket.socket) -> int:
        for number in range(100_000):
            try:
                peer.sendall(b"\0" if number >= 8 else frame(bytes(1 << 16))[number : number + 1])
            except OSError:
                return number
            gevent.sleep(0.01)
        return 0

    with Socket({"connector.pipe.frame_timeout": 0.3}) as server:
        bound = server.listen(address).address
        slow = [gevent.spawn(trickle, peers.enter_context(closing(plain_connection(bound)))) for _ in range(20)]
        with Socket() as honest:
            honest.dial(bound)
            for number in range(20):
                honest.send(b"%d" % number)
                assert server.recv(timeout=5) == b"%d" % number
            gevent.joinall(slow, raise_error=True, timeout=20)
        assert all(greenlet.value for greenlet in slow)


def test_without_limits_half_messages_wait_and_cost_no_time(address: str, peers: ExitStack) -> None:
    with Socket() as server:
        bound = server.listen(address, {"connector.listener.backlog": 2 * COUNT}).address
        for _ in range(COUNT):
            peers.enter_context(closing(plain_connection(bound))).sendall(BEGUN[:7])
        server.wait_pipes(COUNT, timeout=10)
        before = cpu_time()
        gevent.sleep(0.5)
        assert cpu_time() - before < 0.25
        assert len(server.pipes) == COUNT
