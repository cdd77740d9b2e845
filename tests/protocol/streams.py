"""Streams for tests: connections seen from both ends, one whose other end is a plain Socket, and what to send."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from gmultisocket import Socket
from gmultisocket.protocol import Stream
from gmultisocket.wire import CONTROL, TO_DEST, Message

LONG = 20.0
NO_KEEPALIVE = {"protocol.stream.keep_alive_idle": 0}
MIB = 1 << 20
#: What is held for a reader by default.
WINDOW = 4 * MIB


def connected(here: Stream, there: Stream) -> tuple[Any, Any]:
    """Return both ends of a connection from one Stream to the other. All their calls have a time limit."""
    one = here.connect(LONG)
    other = there.accept(LONG)
    one.settimeout(LONG)
    other.settimeout(LONG)
    return one, other


@contextmanager
def pair_of_streams(options: Any = None, address: str = "tcp://127.0.0.1:0") -> Iterator[tuple[Stream, Stream]]:
    """Two Streams, the first of which has dialed the second."""
    with Stream(options) as one, Stream(options) as other:
        one.dial(other.listen(address).address)
        yield one, other


@contextmanager
def by_hand_connection(
    options: Any = None, address: str = "tcp://127.0.0.1:0"
) -> Iterator[tuple[Socket, Stream, Any, Any]]:
    """Connect a Stream to a plain Socket. Yields the Socket, the Stream, its end, and a function that sends to it."""
    with Socket({"socket.recv_queue_size": 10_000}) as by_hand, Stream(options) as client:
        client.dial(by_hand.listen(address).address)
        connecting = gevent.spawn(client.connect, LONG)
        path = by_hand.recv_msg(LONG).source

        def send(content: bytes, flags: int = 0, source: bytes = b"\0\0\0\x05") -> None:
            by_hand.send_msg(Message(flags=flags | TO_DEST, source=source, destination=path, content=content))

        send(b"\x01", CONTROL)
        connection = connecting.get(timeout=LONG)
        connection.settimeout(LONG)
        assert by_hand.recv_msg(LONG).content[:1] == b"\x03"
        yield by_hand, client, connection, send


def read(connection: Any, size: int) -> bytes:
    """Read ``size`` bytes, or fewer if the end comes before."""
    pieces = []
    while size and (piece := connection.recv(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def read_to_end(connection: Any) -> bytes:
    """Read up to the end."""
    return read(connection, 1 << 40)


def pattern(seed: int, size: int) -> bytes:
    """Return ``size`` random bytes, the same ones for the same seed."""
    return random.Random(seed).randbytes(size)
