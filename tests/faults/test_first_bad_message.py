"""A pipe never outlives the first message that breaks the wire's rules, on every transport on which bytes come.

All mistakes are made at the same time, each by a peer of its own, and one deadline holds for all: a pipe that stays
fails by the name of its mistake, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from websockets.frames import Opcode

from gmultisocket import PipeEvent, Socket
from gmultisocket.testing import wait_until
from gmultisocket.wire import INTERNAL, TO_DEST
from tests.addresses import plain_connection
from tests.faults.peers import frame, header
from tests.faults.test_other_languages import connect
from tests.transport import wspeers

LIMIT = 131072
#: What is wrong -> a frame with it.
MISTAKES = {
    "255 hops and a destination": header(hops=255, distance=1),
    "paths of 256 ids together": header(hops=200, distance=56),
    "a destination of none": header(TO_DEST),
    "a ttl of 0": header(ttl=0),
    "send type 3": header(3),
    "send type 3, internal": header(3 | INTERNAL),
    "one byte over the limit": header(length=LIMIT + 1),
    "2 GiB": header(length=1 << 31),
    "4 GiB less one byte": header(length=(1 << 32) - 1),
}
#: The same for transports whose messages have a length of their own.
PACKETS = {
    "no whole header": header()[:7],
    "nothing": b"",
    "shorter than it says": header(length=4) + b"abc",
    "longer than it says": header(length=4) + b"abcde",
    "a path that is cut off": header(hops=2) + b"path",
}
KERNEL = ("tcp", "tcp6", "tls", "ws", "wss", "ipc", "ipc-abstract")


@pytest.fixture(params=KERNEL)
def transport(request: pytest.FixtureRequest) -> str:
    """The name of a transport on which bytes come from outside; the test runs once for each."""
    name: str = request.param
    return name


@pytest.fixture
def server(transport: str, address: str) -> Iterator[Socket]:
    """A socket that listens."""
    with Socket() as sock:
        sock.listen(address)
        yield sock
        sock.close(linger=0)


def connected(transport: str, server: Socket) -> Any:
    """Connect a peer that speaks the wire by hand; it is in."""
    address = server.listeners[0].address
    if transport in ("tls", "ws", "wss"):
        steps = {"tls": ("tls",), "ws": ("upgrade",), "wss": ("tls", "upgrade")}[transport]
        return connect(int(address.rstrip("/").rpartition(":")[2]), steps)
    return plain_connection(address)


def test_every_mistake_closes_its_own_pipe_with_a_reason(transport: str, server: Socket) -> None:
    packets = transport in ("ws", "wss")
    removed: list[PipeEvent] = []
    server.on_pipe(lambda event: removed.append(event) if event.kind == "remove" else None)

    def wire(data: bytes) -> bytes:
        return wspeers.frame(Opcode.BINARY, data) if packets else data

    with ExitStack() as stack:

        def let_in() -> tuple[Any, int]:
            known = set(server.pipes)
            peer = stack.enter_context(closing(connected(transport, server)))
            server.wait_pipes(len(known) + 1, timeout=5)
            [pipe_id] = set(server.pipes) - known
            return peer, pipe_id

        honest, _ = let_in()
        mistakes = [(*let_in(), *item) for item in {**MISTAKES, **(PACKETS if packets else {})}.items()]
        for peer, _, _, data in mistakes:
            peer.sendall(wire(frame(b"good until then")) + wire(data))
        try:
            wait_until(lambda: len(removed) >= len(mistakes), 5)
        except AssertionError:
            pytest.fail(f"open after: {[name for _, pipe_id, name, _ in mistakes if pipe_id in server.pipes]}")
        assert all(event.reason for event in removed)
        assert [server.recv(timeout=5) for _ in mistakes] == [b"good until then"] * len(mistakes)
        honest.sendall(wire(frame(b"untouched")))
        assert server.recv(timeout=5) == b"untouched"
        assert len(server.pipes) == 1 and not server.queued
