"""One long stream of bytes over tcp.

The clock runs from the first ``sendall`` until the other end has read the last byte.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from gevent import socket

from .harness import Entry, Figure, Outcome, Plan, Round, Row, started
from .worker import hear, say

__all__ = ["rows"]

_MIB = 1 << 20
#: Bytes in one call to send or to receive, for every library.
_PIECE = 1 << 18


def rows() -> list[Row]:
    """Return the rows of this work."""
    entries = [Entry(name, partial(_run, name), name) for name in ("gmultisocket", "gevent")]
    figure = Figure("gmultisocket", "gevent", at_least=0.5)
    return [Row("stream", "1 GiB by one stream, by tcp", "MiB/s", True, entries, [figure], repeats=3)]


@contextmanager
def _run(contestant: str, plan: Plan) -> Iterator[Round]:
    mebibytes = plan.count(1024, part=64, quick=16)
    with started(plan) as start:
        reader = start("stream:read", contestant=contestant, size=mebibytes * _MIB)
        writer = start("stream:write", contestant=contestant, size=mebibytes * _MIB)
        writer.tell(address=reader.hear()["address"])
        writer.hear()

        def measure() -> Outcome:
            writer.tell()
            begin = writer.hear()["begin"]
            return Outcome(mebibytes / (reader.hear()["end"] - begin))

        yield measure


def read(contestant: str, size: int) -> None:
    """Accept a connection and read ``size`` bytes a round (worker)."""
    connection = _accept() if contestant == "gevent" else _accept_stream()
    recv_into, buffer = connection.recv_into, bytearray(_PIECE)
    while True:
        got = 0
        while got < size:
            read = recv_into(buffer)
            if not read:
                raise ConnectionError("the writer has ended")
            got += read
        end = time.monotonic()
        assert got == size, f"{got} bytes instead of {size}"
        say(end=end)


def write(contestant: str, size: int) -> None:
    """Connect, and send ``size`` bytes a round (worker)."""
    host, _, port = hear()["address"].removeprefix("tcp://").rpartition(":")
    if contestant == "gevent":
        connection: Any = socket.create_connection((host, int(port)))
    else:
        from gmultisocket.protocol import Stream

        stream = Stream()
        stream.dial(f"tcp://{host}:{port}")
        connection = stream.connect()
    piece = b"x" * _PIECE
    sendall = connection.sendall
    say(ready=True)
    while True:
        # What is queued leaves while the loop runs.
        hear(in_loop=True)
        begin = time.monotonic()
        for _ in range(size // _PIECE):
            sendall(piece)
        say(begin=begin)


def _accept() -> Any:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    say(address=f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    return listener.accept()[0]


def _accept_stream() -> Any:
    from gmultisocket.protocol import Stream

    stream = Stream()
    say(address=stream.listen("tcp://127.0.0.1:0").address)
    return stream.accept()
