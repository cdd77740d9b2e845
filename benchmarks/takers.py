"""Both sides of works in which one hands out and many take: by protocols, over tcp.

Those who take are plain connections of one plain epoll process, as in ``drain.py``, whoever hands out. They say by hand
what a library's own Sub or Pull would say first, and which patterns it wants. No library runs there.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from . import drain
from .contestants.protocols.base import Protocols
from .harness import Scale, started
from .worker import hear, say

__all__ = ["PULL", "SUB", "hand_out", "pattern", "run", "take"]

# What a taker is.
SUB, PULL = "SUB", "PULL"

_HEADER = struct.Struct(">BBBBI")
_CONTROL_TO_ALL, _TTL, _SUBSCRIBE = 0x21, 16, b"\x01"
_SP = {SUB: 0x21, PULL: 0x51}


def pattern(number: int) -> str:
    """Return a pattern, which is a topic that matches it too; no other's beginning, and without the x of contents."""
    return f"prices.{number:05}"


def run(scale: Scale, task: str, arguments: dict[str, Any], **takers: Any) -> tuple[float, int]:
    """Have a task hand out to takers; returns how many seconds that took, and the content bytes of a message.

    Args:
        scale: of the run.
        task: a worker that does :func:`hand_out`.
        arguments: of the task.
        takers: for :func:`take`, what that does not hear from the task: ``kind``, ``peers``, ``patterns``, ``burst``.
    """
    with started(scale) as start:
        hands_out = start(task, **arguments)
        taking = start("takers:take")
        taking.tell(**hands_out.hear(), **takers)
        size = taking.hear()["size"]
        return hands_out.hear()["seconds"], int(size)


def hand_out(
    peer: Protocols, address: str, frame_size: int, wait: Callable[[], object], burst: Callable[[], None], bursts: int
) -> None:
    """Hand out in bursts, and after each wait until everybody has everything (part of a worker).

    Args:
        peer: who does it.
        address: where it listens.
        frame_size: bytes that a message takes.
        wait: blocks until all who take are there.
        burst: hands out one burst.
        bursts: how many are measured. One more comes first, warms up, and shows that everybody gets what it should.
    """
    # A green peer has to wait in its loop, so that this goes on with its work.
    sockets: Any = import_module("gevent.socket" if peer.green else "socket")
    listener = sockets.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    say(address=address, acks=listener.getsockname()[1], handshake=peer.handshake, frame_size=frame_size)
    acks, _ = listener.accept()
    acks.recv(1)
    wait()
    for number in range(bursts + 1):
        if number == 1:
            begin = time.monotonic()
        burst()
        if not acks.recv(1):
            raise ConnectionError("those who take are gone")
    say(seconds=time.monotonic() - begin)
    hear()


def take() -> None:
    """Connect, subscribe, and send a byte back, as whenever a whole burst has come (worker).

    Hears where: ``address``, ``acks`` (the port for those bytes), ``handshake``; and what: ``kind``, ``peers`` who have
    ``patterns`` between them, ``burst`` messages of ``frame_size`` bytes for each of them, on average. Says the
    ``size`` of a content when the first burst is there.
    """
    heard = hear()
    host, _, port = heard["address"].removeprefix("tcp://").rpartition(":")
    acks = socket.create_connection((host, heard["acks"]))
    begin = {"gmultisocket": _begin, "zmtp": _begin_zmtp, "sp": _begin_sp}[heard["handshake"]]
    peers, patterns = heard["peers"], heard["patterns"]
    connections = {}
    for number in range(peers):
        connection = socket.create_connection((host, int(port)), 30.0)
        subscriptions = range(number, max(peers, patterns) if patterns else 0, peers)
        begin(connection, heard["kind"], [pattern(of % patterns).encode() for of in subscriptions])
        connection.setblocking(False)
        connections[connection.fileno()] = connection
    acks.send(b".")
    drain.count(connections, acks, heard["burst"], heard["frame_size"])


def _begin(connection: socket.socket, kind: str, patterns: list[bytes]) -> None:
    """Subscribe, and hear that all of it was taken."""
    for wanted in patterns:
        header = _HEADER.pack(_CONTROL_TO_ALL, _TTL, 0, 0, len(_SUBSCRIBE + wanted))
        connection.sendall(header + _SUBSCRIBE + wanted)
    for _ in patterns:
        _, _, hops, distance, length = _HEADER.unpack(drain.read(connection, _HEADER.size))
        drain.read(connection, 4 * (hops + distance) + length)


def _begin_zmtp(connection: socket.socket, kind: str, patterns: list[bytes]) -> None:
    """Shake hands by ZMTP 3.0 with the NULL mechanism (RFC 23), and subscribe."""
    drain.greet_zmtp(connection, kind.encode())
    connection.sendall(b"".join(bytes((0, 1 + len(wanted))) + b"\x01" + wanted for wanted in patterns))


def _begin_sp(connection: socket.socket, kind: str, patterns: list[bytes]) -> None:
    """Exchange the 8 bytes of nanomsg's SP over TCP."""
    connection.sendall(b"\0SP\0\0" + bytes((_SP[kind],)) + b"\0\0")
    assert drain.read(connection, 8)[:4] == b"\0SP\0", "a peer must speak SP"
