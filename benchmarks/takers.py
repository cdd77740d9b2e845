"""Both sides of the works in which one peer hands out messages by a protocol over tcp, and many peers take them.

The takers are plain connections of one plain epoll process, as in ``drain.py``, for every library. The process writes
by hand the bytes with which a library's own Sub or Pull would start, and the patterns of its subscriptions. It uses no
library.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import drain
from .contestants.protocols.base import Protocols
from .harness import Plan, started
from .worker import await_ack, burst_rounds, hear, listen_for_acks, say

__all__ = ["PULL", "SUB", "SUBSCRIBE", "control", "hand_out", "handing_out", "pattern", "take"]

# The kinds of takers.
SUB, PULL = "SUB", "PULL"

_HEADER = struct.Struct(">BBBBI")
_CONTROL_TO_ALL, _TTL = 0x21, 16
SUBSCRIBE, _SUBSCRIBED = b"\x01", b"\x02"
_SP = {SUB: 0x21, PULL: 0x51}


def pattern(number: int) -> str:
    """Return a pattern. It is also a topic that matches only this pattern. Unlike contents it has no x."""
    return f"prices.{number:05}"


@contextmanager
def handing_out(
    plan: Plan, task: str, arguments: dict[str, Any], **takers: Any
) -> Iterator[Callable[[], tuple[float, int]]]:
    """Start a task that hands out, and its takers.

    Gives a function that does one round, and returns its seconds and the content bytes of a message.

    Args:
        plan: of the run.
        task: a worker that calls :func:`hand_out`.
        arguments: of the task.
        takers: what :func:`take` needs and the task does not send: ``kind``, ``peers``, ``patterns``, ``burst``.
    """
    with started(plan) as start:
        source = start(task, **arguments)
        taking = start("takers:take")
        taking.tell(**source.hear(), **takers)
        size = int(taking.hear()["size"])

        def hand_out_round() -> tuple[float, int]:
            source.tell()
            return source.hear()["seconds"], size

        yield hand_out_round


def hand_out(
    peer: Protocols, address: str, frame_size: int, wait: Callable[[], object], burst: Callable[[], None], bursts: int
) -> None:
    """Hand out in bursts, and after each burst wait until the takers have all of it (part of a worker).

    Args:
        peer: the peer that hands out.
        address: where it listens.
        frame_size: bytes that a message takes.
        wait: blocks until all takers are connected.
        burst: hands out one burst.
        bursts: how many bursts a round has.
    """
    listener = listen_for_acks(green=peer.green)
    say(address=address, acks=listener.getsockname()[1], handshake=peer.handshake, frame_size=frame_size)
    acks, _ = listener.accept()
    await_ack(acks)
    wait()
    burst_rounds(acks, burst, bursts)


def take() -> None:
    """Connect and subscribe; send a byte when that is done, and a byte after every complete burst (worker).

    The parent sends ``address``, ``acks`` (the port for those bytes), ``handshake``, ``kind``, ``peers`` (the number of
    takers), ``patterns`` (the number of patterns that the takers share), and ``burst`` (messages of ``frame_size``
    bytes for each taker, on average). The worker sends the ``size`` of a content after the first burst.
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


def control(content: bytes) -> bytes:
    """Return the bytes of a control message to all."""
    return _HEADER.pack(_CONTROL_TO_ALL, _TTL, 0, 0, len(content)) + content


def _begin(connection: socket.socket, kind: str, patterns: list[bytes]) -> None:
    """Subscribe, and wait for the acknowledgement of each subscription."""
    for wanted in patterns:
        connection.sendall(control(SUBSCRIBE + wanted))
    missing = len(patterns)
    while missing:
        _, _, hops, distance, length = _HEADER.unpack(drain.read_exactly(connection, _HEADER.size))
        paths = 4 * (hops + distance)
        # A Pub also asks who is there.
        missing -= drain.read_exactly(connection, paths + length)[paths : paths + 1] == _SUBSCRIBED


def _begin_zmtp(connection: socket.socket, kind: str, patterns: list[bytes]) -> None:
    """Shake hands by ZMTP 3.0 with the NULL mechanism (RFC 23), and subscribe."""
    drain.greet_zmtp(connection, kind.encode())
    connection.sendall(b"".join(bytes((0, 1 + len(wanted))) + b"\x01" + wanted for wanted in patterns))


def _begin_sp(connection: socket.socket, kind: str, patterns: list[bytes]) -> None:
    """Exchange the 8 bytes of nanomsg's SP over TCP."""
    connection.sendall(b"\0SP\0\0" + bytes((_SP[kind],)) + b"\0\0")
    assert drain.read_exactly(connection, 8)[:4] == b"\0SP\0", "a peer must speak SP"
